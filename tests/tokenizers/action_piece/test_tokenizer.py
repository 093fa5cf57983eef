"""Pieces of a catalogue: distinct items, the same from files, new items beside published ones, and refusals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec.data.catalog import Catalog
from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.action_piece import ActionPiece
from llmrec.tokenizers.action_piece.tokenizer import add_hash
from llmrec.tokenizers.append import PublishedSids, append
from tests.support.clustered import clusters, views_of

OPTIONS = {"num_levels": 3, "codebook_size": 4, "pca_dim": None, "hash_size": 6, "num_pieces": 60, "device": "cpu"}


def catalog_of(num_items: int) -> Catalog:
    """Users who walk round the first 30 items, two steps at a time."""
    ids = [f"item-{row}" for row in range(num_items)]
    walks = [[ids[(start + 2 * step) % 30] for step in range(6)] for start in range(30)]
    split = {"user_id": [f"u{i}" for i in range(30)], "split": ["train"] * 30, "history": [walk[:-1] for walk in walks],
             "target": [walk[-1] for walk in walks]}  # fmt: skip
    return Catalog(pa.table({"item_id": ids, "title": ids}), pa.table(split))


def views(num_items: int):
    return views_of(text=clusters(40, 6, 12)[:num_items])


@pytest.fixture(scope="module")
def fitted() -> ActionPiece:
    return ActionPiece(**OPTIONS).fit(catalog_of(30), views(30))


def test_items_are_distinct_and_shorter_than_their_features(fitted):
    encoded = fitted.encode(catalog_of(30), views(30))
    table = SidTable(catalog_of(30).item_ids, encoded.codes, pieces=encoded.pieces)
    assert len(np.unique(encoded.codes, axis=0)) == 30 and (table.bucket_sizes == 1).all()
    assert table.level_sizes == fitted.level_sizes == [60] * 4 and fitted.counts == {"features": 18, "pieces": 60}
    assert table.lengths.min() < 4, "features of an item are merged"
    assert (encoded.pieces.items(encoded.codes)[:, :3] // 4 == np.arange(3)).all(), "one feature of each kind"


def test_features_are_those_of_opq(fitted):
    encoded = fitted.encode(catalog_of(30), views(30))
    codes = fitted.coder.codes.encode(catalog_of(30), views(30)).codes
    assert (encoded.pieces.items(encoded.codes)[:, :3] == codes + 4 * np.arange(3)).all()


def test_pieces_follow_the_histories():
    """The same items in another order of histories have other pieces across items."""
    catalog = catalog_of(30)
    split = pa.table({"user_id": ["u"], "split": ["train"], "history": [catalog.item_ids[:29]], "target": ["item-29"]})
    other = ActionPiece(**OPTIONS).fit(Catalog(catalog.items, split), views(30))
    first = ActionPiece(**OPTIONS).fit(catalog, views(30))
    assert first.coder.pieces == ActionPiece(**OPTIONS).fit(catalog, views(30)).coder.pieces
    assert first.coder.pieces != other.coder.pieces


def test_saved_and_loaded(tmp_path, fitted):
    fitted.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, "cpu")
    assert (loaded.encode(catalog_of(30), views(30)).codes == fitted.encode(catalog_of(30), views(30)).codes).all()
    assert loaded.coder.pieces == fitted.coder.pieces and loaded.counts == fitted.counts


def test_new_items_get_pieces_and_published_ones_keep_theirs(fitted):
    old = fitted.encode(catalog_of(30), views(30))
    table = SidTable(catalog_of(30).item_ids, old.codes, pieces=old.pieces)
    grown = append(PublishedSids(table, fitted, "accept"), catalog_of(40), views(40)).table
    assert grown.pieces == table.pieces and grown.level_sizes == table.level_sizes
    assert (grown.codes(np.arange(30)) == table.codes(np.arange(30))).all()
    assert (grown.lengths[30:] >= 1).all() and len(np.unique(grown.all_codes, axis=0)) == 40


@pytest.mark.parametrize("order", [[*range(1, 30), 0, 30], [30, *range(30)]])
def test_new_items_before_published_ones_are_refused(fitted, order):
    """There they would take hash codes that published items have."""
    old, every = fitted.encode(catalog_of(30), views(30)), catalog_of(31)
    table = SidTable(catalog_of(30).item_ids, old.codes, pieces=old.pieces)
    catalog = Catalog(every.items.take(order), every._split)
    with pytest.raises(ValueError, match="put new items behind the others, as `llmrec prepare --append-to` does"):
        append(PublishedSids(table, fitted, "accept"), catalog, views(31))


def test_hash_codes():
    codes = np.zeros((5, 2), np.int64)
    codes[4] = 1
    ids = [f"item-{row}" for row in range(5)]
    hashed = add_hash(codes, ids, 4)
    assert sorted(hashed[:4, 2]) == [0, 1, 2, 3] and (hashed[:, :2] == codes).all()
    assert (add_hash(codes[:3], ids[:3], 4) == hashed[:3]).all(), "later items change nothing"
    assert add_hash(codes, ids, 2)[:4, 2].max() == 1, "codes are shared where there are too few"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash_size": 1}, "items have equal codes, more than the 1 hash codes .* set hash_size to"),
        ({"pca_dim": 4}, "give a multiple of num_levels"),
        ({"num_pieces": 17}, "fewer than the 18 features"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        ActionPiece(**(OPTIONS | change)).fit(catalog_of(30), views(30))


def test_answers_have_nothing_left_to_merge(fitted):
    """An answer never holds a pair that is a piece, whatever its order."""
    pieces, codes = fitted.coder.pieces, fitted.encode(catalog_of(30), views(30)).codes
    for answer in codes.tolist():
        rest = [piece for piece in answer if piece != EMPTY]
        assert not [pair for pair in pieces.rank_of if pair[0] != pair[1] and set(pair) <= set(rest)]
