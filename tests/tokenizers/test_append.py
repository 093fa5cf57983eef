"""Append mode: published SIDs never move, new items take what is left, and what does not belong together is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec.configs import TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.manifest import write_json
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.groups import buckets
from llmrec.sid.table import SidTable
from llmrec.tokenizers import Atomic, Encoded, Random, RQKMeans
from llmrec.tokenizers.append import AppendResult, PublishedSids, append
from llmrec.tokenizers.collisions import POLICIES, resolve
from llmrec.views import ItemViews, View

PROPERTY = settings(derandomize=True, max_examples=60, deadline=None)
KEEP_CODES = ("suffix_ordinal", "accept")


def catalog_of(item_ids: list[str]) -> Catalog:
    split = pa.table({"user_id": ["u"], "split": ["train"], "history": [[item_ids[0]]], "target": [item_ids[0]]})
    return Catalog(pa.table({"item_id": item_ids, "title": item_ids, "text": item_ids}), split)


def names(count: int) -> list[str]:
    return [f"item-{row}" for row in range(count)]


def views_of(vectors: np.ndarray, **provenance: str) -> ItemViews:
    return ItemViews(text=View(vectors.astype(np.float32), np.zeros(len(vectors), bool), provenance))


def some_views(catalog: Catalog) -> ItemViews:
    return views_of(np.ones((catalog.num_items, 2)))


def publish(policy: str, codes: np.ndarray, cost: np.ndarray, old: np.ndarray) -> PublishedSids:
    """What a tokenizer that gives item `item-i` the codes and costs of row i has published of the `old` ones."""

    def encode(catalog: Catalog, views: ItemViews) -> Encoded:
        rows = np.array([int(item_id.removeprefix("item-")) for item_id in catalog.item_ids])
        return Encoded(codes[rows], lambda some: torch.as_tensor(cost[rows[some]], dtype=torch.float32))

    catalog = catalog_of([f"item-{row}" for row in old])
    tokenizer = SimpleNamespace(needs_views=True, level_sizes=[4] * codes.shape[1], shares_codes=True,
                                encode_aliases=lambda *items: [encode(*items)])  # fmt: skip
    resolved, sizes, _ = resolve(policy, encode(catalog, ItemViews()), tokenizer.level_sizes)
    return PublishedSids(SidTable(catalog.item_ids, resolved, level_sizes=sizes), tokenizer, policy)


def nearest_own(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 4) random costs of which an item's own last code is the lowest."""
    cost = 1 + np.random.default_rng(seed).random((len(codes), 4))
    cost[np.arange(len(codes)), codes[:, -1]] = 0
    return cost


def appended(policy: str, codes: list[list[int]], num_old: int, cost: np.ndarray | None = None) -> AppendResult:
    """The first `num_old` items are published, all are in the new catalogue."""
    codes = np.array(codes)
    published = publish(policy, codes, nearest_own(codes) if cost is None else cost, np.arange(num_old))
    catalog = catalog_of(names(len(codes)))
    return append(published, catalog, some_views(catalog))


@PROPERTY
@given(
    codes=hnp.arrays(np.int64, st.tuples(st.integers(2, 30), st.integers(1, 3)), elements=st.integers(0, 3)),
    seed=st.integers(0, 999),
    policy=st.sampled_from(POLICIES),
)
def test_published_sids_never_move_and_new_ones_are_distinct(codes, seed, policy):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(codes))
    first, second = sorted(rng.integers(1, len(codes) + 1, 2))
    try:
        published = publish(policy, codes, nearest_own(codes, seed), order[:first])
    except ValueError:
        assume(False)  # a parent too large for the policy from the start
    for count in (second, len(codes)):  # append to what was appended, the catalogue in another order each time
        old, catalog = published.table, catalog_of([f"item-{row}" for row in rng.permutation(order[:count])])
        try:
            result = append(published, catalog, some_views(catalog))
        except ValueError as error:
            assert "find no free last code" in str(error) and policy not in KEEP_CODES
            assert buckets(codes[order[:count], :-1])[2].max() > 4
            return
        table = result.table
        assert table.item_ids == catalog.item_ids and table.num_levels == old.num_levels
        now = [catalog.row_of[item_id] for item_id in old.item_ids]
        np.testing.assert_array_equal(table.codes(now), old.all_codes)
        assert all(np.greater_equal(table.level_sizes, old.level_sizes))
        assert [catalog.item_ids[row] for row in result.new_rows] == [
            item_id for item_id in catalog.item_ids if item_id not in old.item_ids
        ]
        given_codes = result.encoded.codes[result.new_rows]
        settled = codes.shape[1] - (policy not in KEEP_CODES)
        np.testing.assert_array_equal(table.codes(result.new_rows)[:, :settled], given_codes[:, :settled])
        assert policy == "accept" or table.bucket_sizes.max() == 1
        assert SidTrie(table).num_items == len(catalog.item_ids)  # new items are decoded at once
        published = PublishedSids(table, published.tokenizer, policy)


def test_suffixes_count_on_and_the_level_grows_where_they_run_out():
    codes = [[0, 1], [2, 2], [0, 1], [0, 1], [3, 3], [0, 1], [0, 1]]
    result = appended("suffix_ordinal", codes, 3)
    assert result.table.all_codes[:, 2].tolist() == [0, 0, 1, 2, 0, 3, 4]
    assert result.table.level_sizes == [4, 4, 5]
    assert result.notes == [
        "4 new items; 3 keep their semantic IDs.",
        "Level 2 grew from 4 to 5 codes; an LLM without spare codes there needs new tokens.",
    ]
    assert appended("suffix_ordinal", codes[:5], 3).table.level_sizes == [4, 4, 4]


def test_nothing_is_put_behind_a_published_sid_without_a_suffix():
    """(0, 1) has suffixes and takes one more; (2, 2) is complete as it is, so item 4 goes to its next nearest code."""
    codes = [[0, 1], [0, 1], [2, 2], [0, 1], [2, 2], [3, 3]]
    cost = nearest_own(np.array(codes))
    cost[4] = [9, 5, 0, 7]
    result = appended("suffix_if_collided", codes, 3, cost)
    assert result.table.all_codes.tolist() == [[0, 1, 0], [0, 1, 1], [2, 2, -1], [0, 1, 2], [2, 1, -1], [3, 3, -1]]
    assert result.notes[1] == "1 new items have another last code than the tokenizer's, whose place was taken."


@pytest.mark.parametrize("policy", ["sinkhorn_reassign", "hungarian_leaf", "suffix_if_collided"])
def test_without_a_suffix_new_items_take_the_nearest_free_codes_in_turn(policy):
    codes = [[1, 0], [1, 2], [1, 0], [1, 0], [2, 0]]
    cost = np.array([[0, 9, 9, 9], [9, 9, 0, 9], [0, 5, 1, 4], [0, 5, 1, 4], [0, 9, 9, 9]])
    assert appended(policy, codes, 2, cost).table.all_codes.tolist() == [[1, 0], [1, 2], [1, 3], [1, 1], [2, 0]]
    codes, cost = [*codes[:4], [1, 2]], np.vstack([cost[:4], [[9, 9, 0, 9]]])
    with pytest.raises(ValueError, match=rf"3 new items belong under the codes \[1\], where 1 of them .* '{policy}'"):
        appended(policy, codes, 2, cost)


def test_sinkhorn_with_suffixes_shares_where_nothing_is_free():
    """Items 0 and 1 have equal costs, so that the published ones got suffixes."""
    codes = [[1, 0], [1, 0], [1, 1], [1, 2], [1, 3], [1, 3]]
    cost = np.array([[0, 9, 9, 9], [0, 9, 9, 9], [9, 0, 9, 9], [9, 9, 0, 9], [9, 9, 9, 0], [9, 9, 9, 0]])
    table = appended("sinkhorn_reassign", codes, 4, cost).table
    assert table.level_sizes == [4, 4, 4]
    assert table.codes([4, 5])[:, 1:].tolist() == [[3, 0], [3, 1]]


def test_a_policy_of_an_earlier_version_is_refused_with_the_remedy():
    codes = np.array([[0, 1], [0, 2]])
    published = publish("accept", codes, nearest_own(codes), np.arange(2))
    old = PublishedSids(published.table, published.tokenizer, "knn_cap")
    with pytest.raises(
        ValueError, match=r"made with collision 'knn_cap', which this version does not have.*suffix_ordinal"
    ):
        append(old, catalog_of(names(2)), some_views(catalog_of(names(2))))


def test_without_new_items_the_table_is_the_same():
    result = appended("suffix_ordinal", [[0, 1], [0, 1], [2, 2]], 3)
    assert result.notes == ["No new items: all 3 keep their semantic IDs."]
    assert result.table.all_codes.tolist() == [[0, 1, 0], [0, 1, 1], [2, 2, 0]] and result.table.level_sizes == [4] * 3


def test_a_published_item_must_stay():
    codes = np.array([[0, 1], [0, 2], [1, 1]])
    published = publish("suffix_ordinal", codes, nearest_own(codes), np.arange(3))
    catalog = catalog_of(["item-0", "item-2"])
    with pytest.raises(ValueError, match=r"lacks 1 of 3 published items, first 'item-1'.*keep its row"):
        append(published, catalog, some_views(catalog))


@pytest.mark.parametrize("policy", ["suffix_ordinal", "accept"])
def test_atomic_counts_on_whatever_the_order(policy):
    tokenizer = Atomic().fit(catalog_of(names(3)), ItemViews())
    codes, sizes, _ = resolve(policy, tokenizer.encode(catalog_of(names(3)), ItemViews()), tokenizer.level_sizes)
    published = PublishedSids(SidTable(names(3), codes, level_sizes=sizes), tokenizer, policy)
    for order, expected in (([4, 2, 0, 1], [3, 2, 0, 1]), ([5, 0, 1, 2, 3, 4], [4, 0, 1, 2, 5, 3])):
        result = append(published, catalog_of([f"item-{row}" for row in order]), ItemViews())
        assert result.table.all_codes[:, 0].tolist() == expected
        assert result.table.level_sizes == [len(order), *sizes[1:]]
        published = PublishedSids(result.table, tokenizer, policy)


def test_codes_that_follow_from_the_whole_catalogue_cannot_be_appended_to():
    old, new = catalog_of(names(3)), catalog_of(names(4))
    tokenizer = Random(num_levels=2, codebook_size=4).fit(old, ItemViews())
    table = SidTable(old.item_ids, tokenizer.encode(old, ItemViews()).codes, level_sizes=[4, 4])
    with pytest.raises(ValueError, match="codes of method 'random' follow from the whole catalogue"):
        append(PublishedSids(table, tokenizer, "accept"), new, ItemViews())


VECTORS = np.random.default_rng(0).normal(size=(60, 6))


def fitted(seed: int = 0) -> RQKMeans:
    """Of the first 40 items."""
    options = {"num_levels": 2, "codebook_size": 4, "seed": seed, "device": "cpu"}
    return RQKMeans(**options).fit(catalog_of(names(40)), views_of(VECTORS[:40]))


def write_published(path: Path, table: SidTable, tokenizer: RQKMeans, policy: str | None) -> Path:
    """As `llmrec tokenize` leaves it."""

    def build(workdir: Path) -> None:
        table.save(workdir)
        tokenizer.save_pretrained(workdir)
        write_json(workdir / "report.json", {"collision": policy} if policy else {})

    return run_stage("tokenize", TokenizeConfig(out=str(path), catalog="c", views="v"), {}, build)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    tokenizer = fitted()
    encoded = tokenizer.encode(catalog_of(names(40)), views_of(VECTORS[:40]))
    codes, sizes, _ = resolve("suffix_ordinal", encoded, tokenizer.level_sizes)
    table = SidTable(names(40), codes, level_sizes=sizes)
    return write_published(tmp_path_factory.mktemp("published") / "sid", table, tokenizer, "suffix_ordinal")


def test_a_directory_is_appended_to_twice(tmp_path, directory):
    rng, published = np.random.default_rng(1), PublishedSids.load(directory, "cpu")
    whole = published.tokenizer.encode(catalog_of(names(60)), views_of(VECTORS)).codes
    for count in (50, 60):
        rows = rng.permutation(count)
        catalog = catalog_of([f"item-{row}" for row in rows])
        result = append(published, catalog, views_of(VECTORS[rows]))
        assert len(result.new_rows) == 10
        np.testing.assert_array_equal(result.table.all_codes[:, :2], whole[rows])
        old_rows = [catalog.row_of[item_id] for item_id in published.table.item_ids]
        np.testing.assert_array_equal(result.table.codes(old_rows), published.table.all_codes)
        out = write_published(tmp_path / str(count), result.table, published.tokenizer, published.policy)
        published = PublishedSids.load(out, "cpu")
    assert published.table.sha256 == result.table.sha256 and published.policy == "suffix_ordinal"


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (views_of(VECTORS[:, ::-1]), "views ['text'] the tokenizer makes the published codes again for .* of 40 items"),
        (views_of(VECTORS[:, ::-1], encoder="minilm"), "They come from another encoder or template"),
        (views_of(VECTORS[:, ::-1], encoder="tfidf"), "['text'] are fitted to a catalogue and are other vectors"),
        (views_of(VECTORS[:, :3]), "fitted on the views {'text': 6} (name: dimension) and was given {'text': 3}"),
        (ItemViews(title=views_of(VECTORS)["text"]), "and was given {'title': 6}"),
        (ItemViews(text=View(np.zeros((60, 6), np.float32), np.ones(60, bool))), "0 of 0 items that they know"),
    ],
)
def test_views_of_another_encoder_are_refused(directory, views, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        append(PublishedSids.load(directory, "cpu"), catalog_of(names(60)), views)


def test_a_few_texts_may_have_changed(directory):
    changed = VECTORS.copy()
    changed[:3] *= -1
    published = PublishedSids.load(directory, "cpu")
    table = append(published, catalog_of(names(60)), views_of(changed)).table
    np.testing.assert_array_equal(table.codes(np.arange(40)), published.table.all_codes)
    changed[:20] = -VECTORS[:20]
    with pytest.raises(ValueError, match="90% are needed"):
        append(published, catalog_of(names(60)), views_of(changed))


def test_codebooks_of_another_table_are_refused(tmp_path, directory):
    table = SidTable.load(directory)
    other = write_published(tmp_path / "other", table, fitted(seed=1), "suffix_ordinal")
    with pytest.raises(ValueError, match=r"or its codebooks.safetensors is not the table's"):
        append(PublishedSids.load(other, "cpu"), catalog_of(names(60)), views_of(VECTORS))
    longer = SidTable(table.item_ids, np.column_stack([table.all_codes, table.all_codes]), level_sizes=[40] * 6)
    with pytest.raises(ValueError, match=r"the table has levels of \[40, .*\] codes, the tokenizer of \[4, 4\]"):
        PublishedSids.load(write_published(tmp_path / "longer", longer, fitted(), "accept"), "cpu")


def test_a_directory_that_names_no_policy_is_refused(tmp_path, directory):
    table = SidTable.load(directory)
    with pytest.raises(ValueError, match="does not say by which collision policy"):
        PublishedSids.load(write_published(tmp_path / "sid", table, fitted(), None), "cpu")
    with pytest.raises(ValueError, match="is not a directory that llmrec finished"):
        PublishedSids.load(tmp_path / "none", "cpu")
