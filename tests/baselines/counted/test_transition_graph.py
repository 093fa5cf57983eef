"""The transition graph by hand on the shared catalogue: walks, similarities, their mixture, and what is refused.

Its training sequences are 0 1 2 / 1 3 5 / 2 5 8 / 3 4 5 / 4 6 8 / 5 8 11. Item 1 is followed by 2 and 3, item 2 by 5,
item 3 by 4 and 5, each half of the time where there are two.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec.baselines.counted import Markov, TransitionGraph, transition_graph
from llmrec.baselines.counted.transition_graph import cosines, words
from llmrec.data.catalog import Catalog
from tests.support.networks import split

# Of item 1: the cosine with 2 is 1, with 3 it is 0, with 4 .6, with 5 -1, which counts as 0.
FEATURES = np.zeros((12, 2))
FEATURES[:6] = [[0, 0], [1, 0], [2, 0], [0, 3], [3, 4], [-1, 0]]
# Walks of one and, worth half, two steps from item 1: 5 is reached through 2, and half of the time from 3.
WALKS = {2: 1 / 2, 3: 1 / 2, 4: 1 / 2 * 1 / 4, 5: 1 / 2 * (1 / 2 + 1 / 4)}
SIMILAR = {2: 1.1, 3: 0.1, 4: 0.7, 5: 0.1}


def scores(ranker, history) -> dict[int, float]:
    row = ranker.scores([np.array(history, dtype=np.int64)]).toarray()[0]
    return {int(item): row[item] for item in row.nonzero()[0]}


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_candidates_by_walk_and_similarity(catalog, weight):
    ranker = TransitionGraph(catalog, features=FEATURES, hops=2, last_items=1, weight=weight)
    expected = {item: WALKS[item] ** (1 - weight) * SIMILAR[item] ** weight for item in WALKS}
    assert scores(ranker, [8, 1]) == pytest.approx(expected)
    order = sorted(expected, key=lambda item: (-expected[item], [5, 2, 3, 4].index(item)))  # equal: the more popular
    assert ranker.rank([np.array([8, 1])], 4).items[0].tolist() == order


def test_the_item_before_the_last_counts_half(catalog):
    options = {"features": FEATURES, "hops": 2, "weight": 0.3}
    one, two = (TransitionGraph(catalog, last_items=count, **options) for count in (1, 2))
    last, before = scores(one, [1]), scores(one, [0])
    assert set(before) == {1, 2, 3}  # 0 was followed by 1
    expected = {item: last.get(item, 0) + before.get(item, 0) / 2 for item in {*last, *before}}
    assert scores(two, [5, 0, 1]) == pytest.approx(expected)


def test_one_hop_of_transitions_alone_is_the_markov_chain(catalog):
    ranker = TransitionGraph(catalog, features=FEATURES, hops=1, last_items=1, weight=0)
    assert (ranker.neighbours != Markov(catalog).neighbours).nnz == 0


def test_an_item_is_its_own_candidate_only_if_it_followed_itself():
    catalog = split([[0, 1, 0, 1], [2, 2, 3]], [], [])
    found = TransitionGraph(catalog, features=np.ones((12, 1)), hops=2).neighbours.toarray()
    assert found[0, 0] == found[1, 1] == 0 < found[2, 2]


def test_candidates_are_the_most_reached_and_blocks_change_nothing(catalog, monkeypatch):
    whole = TransitionGraph(catalog, features=FEATURES, hops=3, weight=0).neighbours.toarray()
    monkeypatch.setattr(transition_graph, "CANDIDATES", 2)
    monkeypatch.setattr(transition_graph, "BLOCK", 5)
    monkeypatch.setattr(transition_graph, "PAIRS", 3)
    cut = TransitionGraph(catalog, features=FEATURES, hops=3, weight=0).neighbours.toarray()
    for full, kept in zip(whole, cut, strict=True):
        best = np.lexsort((np.arange(12), -full))[:2]
        np.testing.assert_allclose(kept[best], full[best])
        assert np.delete(kept, best).max() == 0


def test_words_of_the_text_compare_items(catalog):
    texts = ["red shoe", "red shoe", "blue hat", "blue shoe", None, "  "]
    rows = pa.table({name: pa.array([], kind) for name, kind in _SPLIT.items()})
    items = pa.table({"item_id": list("abcdef"), "title": ["same"] * 6, "text": texts})
    features = words(Catalog(items, rows))
    dense = features.toarray()
    pairs = np.array([0, 0, 0, 4]), np.array([1, 2, 3, 4])
    assert cosines(features, *pairs) == pytest.approx((dense[pairs[0]] * dense[pairs[1]]).sum(axis=1))
    assert cosines(features, *pairs)[[0, 1, 3]] == pytest.approx([1, 0, 0])
    assert cosines(dense, *pairs) == pytest.approx(cosines(features, *pairs))


def test_items_without_words_are_refused():
    rows = pa.table({name: pa.array([], kind) for name, kind in _SPLIT.items()})
    catalog = Catalog(pa.table({"item_id": ["a", "b"], "title": ["", None]}), rows, "shop")
    with pytest.raises(ValueError, match=r"no 'title' of shop/items.parquet has a word"):
        TransitionGraph(catalog)
    with pytest.raises(ValueError, match=r"hops is 0; at least 1 is needed; weight is 2; at most 1 is allowed"):
        TransitionGraph(catalog, hops=0, weight=2)


_SPLIT = {"user_id": pa.string(), "split": pa.string(), "history": pa.list_(pa.string()), "target": pa.string()}
