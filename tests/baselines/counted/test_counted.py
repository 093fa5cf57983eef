"""Baselines by hand on the shared catalogue: scores, order of ties, exclusion, and training behaviour only (law 1)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines.counted import COUNTED_BASELINES, ItemKNN, Markov, Popularity, Repeat, item_knn
from llmrec.data.catalog import Catalog

# The training sequences of the fixture are 0 1 2 / 1 3 5 / 2 5 8 / 3 4 5 / 4 6 8 / 5 8 11, so items 0 … 11 occur
# 1 2 2 2 2 4 1 0 3 0 0 1 times.
BY_POPULARITY = [5, 8, 1, 2, 3, 4, 0, 6, 11, 7, 9, 10]


def top(ranker, history, k=12, exclude=None) -> list[int]:
    excluded = None if exclude is None else [np.array(exclude, dtype=np.int64)]
    return ranker.rank([np.array(history, dtype=np.int64)], k, excluded).items[0].tolist()


def test_popularity_counts_training_interactions_and_breaks_ties_by_item_row(catalog):
    assert top(Popularity(catalog), [3]) == BY_POPULARITY
    scores = Popularity(catalog).rank([np.array([3])], 2).scores
    np.testing.assert_allclose(scores, [[4 / 18 - 1, 3 / 18 - 1]])


def test_repeat_puts_frequent_then_recent_items_first(catalog):
    assert top(Repeat(catalog), [9, 7, 10, 7, 2], k=6) == [7, 2, 10, 9, 5, 8]
    assert top(Repeat(catalog), [9, 7, 10, 7, 2], k=3, exclude=[2, 7, 9, 10]) == [5, 8, 1]


def test_markov_ranks_successors_of_the_last_item_then_popular_items(catalog):
    ranker = Markov(catalog)  # 5 was followed by 8 twice; 1 by 2 and 3; 8 by 11 once
    assert top(ranker, [0, 8], k=3) == [11, 5, 8]
    assert top(ranker, [8, 1], k=4) == [2, 3, 5, 8]
    np.testing.assert_allclose(ranker.rank([np.array([1])], 2).scores, [[1 / 2, 1 / 2]])
    np.testing.assert_allclose(ranker.rank([np.array([5])], 1).scores, [[1]])
    assert top(ranker, [7]) == BY_POPULARITY  # 7 never occurred
    assert top(ranker, []) == BY_POPULARITY


def test_item_knn_sums_cosine_similarities_with_recency_decay(catalog):
    ranker, decay, shrink = ItemKNN(catalog), 0.5, 20

    def similar(both, a, b):
        return both / (np.sqrt(a * b) + shrink)

    # Users of 11: {5}; with 8 and 5. Users of 0: {0}; with 1 and 2.
    expected = {5: similar(1, 1, 4), 8: similar(1, 1, 3), 1: decay * similar(1, 1, 2), 2: decay * similar(1, 1, 2)}
    ranked = ranker.rank([np.array([0, 11])], 5)
    order = sorted(expected, key=lambda item: (-expected[item], BY_POPULARITY.index(item)))
    assert ranked.items[0].tolist() == [*order, next(i for i in BY_POPULARITY if i not in expected)]
    np.testing.assert_allclose(ranked.scores[0, :4], [expected[item] for item in order])


def test_item_knn_counts_a_user_once(catalog):
    items = catalog.items
    rows = [{"user_id": "u", "split": "train", "history": ["item-0", "item-1", "item-0"], "target": "item-1"}]
    repeated = ItemKNN(Catalog(items, pa.Table.from_pylist(rows)))
    assert repeated.neighbours[0, 1] == pytest.approx(1 / (1 + 20))


def test_item_knn_keeps_the_nearest_neighbours(catalog, monkeypatch):
    whole = ItemKNN(catalog).neighbours.toarray()
    monkeypatch.setattr(item_knn, "BLOCK", 5)
    cut = ItemKNN(catalog, neighbours=2).neighbours.toarray()
    for full, kept in zip(whole, cut, strict=True):
        nearest = np.lexsort((np.arange(12), -full))[:2]
        np.testing.assert_allclose(kept[nearest], full[nearest])
        assert np.delete(kept, nearest).max() == 0


@pytest.mark.parametrize("name", COUNTED_BASELINES)
def test_held_out_examples_change_nothing(catalog, item_ids, name):
    def with_held_out(seed):
        rng, rows = np.random.default_rng(seed), []
        for i in range(len(catalog.train)):
            ids = [item_ids[row] for row in catalog.train.sequence(i)]
            rows.append({"user_id": f"{i}", "split": "train", "history": ids[:-1], "target": ids[-1]})
            for split in ("valid", "test"):
                rows.append({"user_id": f"{i}", "split": split, "history": ids, "target": str(rng.choice(item_ids))})
        return Catalog(catalog.items, pa.Table.from_pylist(rows))

    histories = [np.array([row, (row + 5) % 12]) for row in range(12)]
    rankings = [COUNTED_BASELINES[name](with_held_out(seed)).rank(histories, 12) for seed in (0, 1)]
    np.testing.assert_array_equal(rankings[0].items, rankings[1].items)
    np.testing.assert_array_equal(rankings[0].scores, rankings[1].scores)


@pytest.mark.parametrize("name", COUNTED_BASELINES)
@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    histories=st.lists(st.lists(st.integers(0, 11), max_size=6), min_size=1, max_size=4),
    exclude=st.lists(st.lists(st.integers(0, 11), max_size=12), min_size=4, max_size=4),
    k=st.integers(1, 14),
)
def test_a_ranking_holds_distinct_allowed_items_and_fills_what_it_can(fitted, name, histories, exclude, k):
    histories, excluded = [np.array(h, dtype=np.int64) for h in histories], exclude[: len(histories)]
    ranked = fitted[name].rank(histories, k, [np.array(e, dtype=np.int64) for e in excluded])
    for row, blocked in enumerate(excluded):
        filled = ranked.items[row][ranked.items[row] >= 0].tolist()
        assert len(set(filled)) == len(filled) == min(k, 12 - len(set(blocked)))
        assert not set(filled) & set(blocked)
        assert (np.diff(ranked.scores[row, : len(filled)]) <= 0).all()
        alone = fitted[name].rank([histories[row]], k, [np.array(blocked, dtype=np.int64)])
        np.testing.assert_array_equal(alone.items[0], ranked.items[row])  # its batch changes nothing


@pytest.fixture(scope="module")
def fitted(module_catalog):
    return {name: baseline(module_catalog) for name, baseline in COUNTED_BASELINES.items()}


@pytest.fixture(scope="module")
def module_catalog():
    rng = np.random.default_rng(0)
    ids = [f"item-{row}" for row in range(12)]
    rows = [
        {"user_id": f"{u}", "split": "train", "history": [ids[i] for i in rng.integers(0, 11, 4)], "target": ids[u % 9]}
        for u in range(10)
    ]
    return Catalog(pa.table({"item_id": ids, "title": ids}), pa.Table.from_pylist(rows))
