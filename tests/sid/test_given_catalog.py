"""A catalogue given at answering time: the checkpoint's own, a later one of the same items, or a stranger's."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import ItemIds
from llmrec.runtime.manifest import content_hash, read_manifest
from llmrec.sid.catalogs.catalog_record import CatalogRecord, title_hash
from llmrec.sid.catalogs.given_catalog import match_catalog
from llmrec.sid.table import SidTable
from tests.conftest import TITLES
from tests.support.prepared import write_catalog

IDS = [f"item-{row}" for row in range(12)]
OTHERS = [f"another {title}" for title in TITLES]


def split_of(item_ids: list[str]) -> pa.Table:
    return pa.table({"user_id": ["u"], "split": ["train"], "history": [item_ids[:2]], "target": [item_ids[-1]]})


def catalog_of(item_ids, titles, **columns) -> Catalog:
    items = pa.table({"item_id": item_ids, "title": pa.array(titles, pa.string()), **columns})
    return Catalog(items, split_of(item_ids), "given")


@pytest.fixture
def record(catalog) -> CatalogRecord:
    return CatalogRecord.of(catalog)


def matched(sid_table, record, *given, **columns):
    return match_catalog(catalog_of(*given, **columns), sid_table, record, {})


def test_a_later_catalogue_says_what_may_be_shown(sid_table, record):
    """Item 0 is gone, two came, prices were added, and titles were corrected."""
    titles = [*TITLES[1:4], "RED plum!", *TITLES[5:], "oolong", "mate"]
    found = matched(sid_table, record, [*IDS[1:], "n-1", "n-2"], titles, price=list(range(13)))
    assert found.gone == ["item-0"] and found.new == ["n-1", "n-2"] and found.retitled == []
    titles[0] = "a green apple of the new season"
    found = matched(sid_table, record, [*IDS[1:], "n-1", "n-2"], titles)
    assert found.retitled == ["item-1"] and found.counts == {"shown": 11, "gone": 1, "new": 2, "retitled": 1}
    assert found.is_shown.tolist() == [False] + [True] * 11
    assert [note.split(":")[0] for note in found.notes()] == [
        "1 item (first 'item-0')", "2 items (first 'n-1')", "1 item (first 'item-1')",
    ]  # fmt: skip


def test_the_checkpoints_own_order_of_items_does_not_matter(sid_table, record):
    found = matched(sid_table, record, IDS[::-1], TITLES[::-1])
    assert found.is_shown.all() and found.notes() == []


@pytest.mark.parametrize(
    ("ids", "titles"),
    [
        (IDS, OTHERS),
        (IDS, TITLES[1:] + TITLES[:1]),  # numbered from another item on
        (IDS[:6] + [f"n-{row}" for row in range(6)], OTHERS),  # half of the ids overlap
        (IDS, [*TITLES[:6], *OTHERS[6:]]),
        (IDS[:1], OTHERS[:1]),
    ],
    ids=["all titles differ", "shifted", "half overlaps", "half was given to others", "one item"],
)
def test_a_strangers_catalogue_is_refused(sid_table, record, ids, titles):
    with pytest.raises(ValueError, match=r"catalogue 'given' is of other items than the model knows: of \d+ item_ids"):
        matched(sid_table, record, ids, titles)


def test_a_catalogue_without_a_common_item_is_refused(sid_table, record):
    with pytest.raises(ValueError, match="has none of the 12 items that the model knows, such as 'item-0'"):
        matched(sid_table, record, ["x", "y", "z"], ["x", "y", "z"])


def test_where_nothing_tells_a_catalogue_is_refused(sid_table, record):
    with pytest.raises(ValueError, match="without titles nothing tells"):
        matched(sid_table, record, IDS, [None] * 12)
    with pytest.raises(ValueError, match="without titles nothing tells"):
        matched(sid_table, CatalogRecord(np.zeros(12, np.uint64), np.ones(12, np.int64)), IDS, TITLES)
    with pytest.raises(ValueError, match="keeps no titles' hashes"):
        matched(sid_table, None, IDS, TITLES)


def test_texts_tell_where_titles_are_missing(sid_table, catalog):
    untitled = catalog_of(IDS, [None] * 12, text=list(TITLES))
    assert matched(sid_table, CatalogRecord.of(untitled), IDS, [None] * 12, text=list(TITLES)).retitled == []
    with pytest.raises(ValueError, match="of other items"):
        matched(sid_table, CatalogRecord.of(untitled), IDS, [None] * 12, text=OTHERS)


def test_the_hash_of_its_own_catalogue_is_enough(tmp_path):
    """Untitled, and of a checkpoint that keeps no record: the hash of the files decides."""
    items = pa.table({"item_id": IDS, "title": pa.nulls(12, pa.string())})
    own = write_catalog(tmp_path / "own", items, split_of(IDS))
    table = SidTable(IDS, np.arange(12)[:, None])
    found = match_catalog(own, table, None, {"catalog_sha256": content_hash(own.source)})
    assert found.is_shown.all() and found.record.train_counts.tolist() == [1, 1, *[0] * 9, 1]
    with pytest.raises(ValueError, match="is not the one"):
        match_catalog(own, table, None, {"catalog_sha256": "0" * 64})


def test_a_catalogue_that_was_appended_to_is_of_the_same_items(tmp_path):
    """Untitled, so the hashes alone tell; of the one in between only the hash is left."""
    catalogs = []
    for name, ids in (("first", IDS[:4]), ("second", IDS[:6]), ("third", IDS)):
        items = pa.table({"item_id": ids, "title": pa.nulls(len(ids), pa.string())})
        earlier = {"append_to": catalogs[-1].source} if catalogs else {}
        catalogs.append(write_catalog(tmp_path / name, items, split_of(ids), earlier))
    first, second, third = catalogs
    table = SidTable(IDS[:4], np.arange(4)[:, None])
    for given in catalogs:
        found = match_catalog(given, table, None, {"catalog_sha256": content_hash(first.source)})
        assert found.is_shown.all() and len(found.new) == given.num_items - 4
    with pytest.raises(ValueError, match="is not the one"):
        match_catalog(second, table, None, {"catalog_sha256": content_hash(third.source)})
    shutil.rmtree(second.source)
    assert match_catalog(third, table, None, {"catalog_sha256": hash_of_inputs(third)}).is_shown.all()
    with pytest.raises(ValueError, match="is not the one"):
        match_catalog(third, table, None, {"catalog_sha256": content_hash(first.source)})


def hash_of_inputs(catalog: Catalog) -> str:
    return read_manifest(catalog.source)["identity"]["inputs"]["append_to"]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("Jaws (1975)", "jaws 1975", True),
        ("Amélie", "Ame\u0301lie", True),
        ("ﬁlm", "FILM", True),
        ("Saw", "Saw II", False),
        ("???", "!!!", False),
        ("東京物語", "東京", False),
        ("\ud800", "\ud801", False),
    ],
)
def test_titles_are_compared_by_letters_and_digits(one, other, is_same):
    assert (title_hash(one) == title_hash(other)) == is_same


def test_a_title_of_blanks_is_unknown():
    assert title_hash(" \t") == title_hash("") == 0


def test_a_record_is_read_as_it_was_written_or_refused(record, tmp_path):
    details = record.save(tmp_path)
    again = CatalogRecord.load(tmp_path, details, 12)
    assert (again.title_hashes == record.title_hashes).all() and (again.train_counts == record.train_counts).all()
    assert CatalogRecord.load(tmp_path, {}, 12) is None
    with pytest.raises(ValueError, match="is of 12 items, the SID table of 13"):
        CatalogRecord.load(tmp_path, details, 13)
    file = tmp_path / "catalog_record.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed since the checkpoint was written"):
        CatalogRecord.load(tmp_path, details, 12)
    file.unlink()
    with pytest.raises(ValueError, match="is missing"):
        CatalogRecord.load(tmp_path, details, 12)


def test_appended_items_have_titles_and_no_training(record, catalog):
    item_ids = ItemIds(["n-1", *IDS[::-1], "n-2"])
    grown = record.grown(catalog.row_of, item_ids, catalog_of(item_ids, ["mate", *TITLES[::-1], None]))
    assert grown.train_counts.tolist() == [0, *record.train_counts[::-1], 0]
    assert grown.title_hashes.tolist() == [title_hash("mate"), *record.title_hashes[::-1], 0]
    assert record.grown(catalog.row_of, item_ids, None).title_hashes.tolist() == [0, *record.title_hashes[::-1], 0]
