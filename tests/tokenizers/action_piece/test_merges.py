"""Merges learned with a heap equal a recount after every merge; a recount that forgets gives the released code's."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from llmrec.sid.pieces.feature_sets import Node, merge_everywhere, places
from llmrec.tokenizers.action_piece.merges import learn_merges

A, B, C = (1, 3, 5), (2, 4, 5), (1, 4, 6)  # the released code numbers features from 1


def weights(nodes: list[Node]) -> Counter:
    found: Counter = Counter()
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        for place in places(node, following):
            found[place.pair] += 1 / Fraction(place.cells)
    return found


def recount(histories, first: int, num_merges: int, forgets: bool = False) -> list[tuple[tuple[int, int], float]]:
    """Merge by counting every history again; the released code forgets to subtract pairs that have vanished."""
    corpus = [[Node(tuple(item)) for item in history] for history in histories]
    counts = [weights(nodes) for nodes in corpus]
    total = sum(counts, Counter())
    merges: list[tuple[tuple[int, int], float]] = []
    while len(merges) < num_merges:
        left = {pair: weight for pair, weight in total.items() if weight and pair not in dict(merges)}
        if not left:
            break
        pair = min(left, key=lambda each: (-left[each], each))
        for i, nodes in enumerate(corpus):
            if pair in counts[i]:
                corpus[i] = merge_everywhere(list(nodes), pair, first + len(merges))
                new = weights(corpus[i])
                for each in new if forgets else {**new, **counts[i]}:
                    total[each] += new[each] - counts[i][each]
                counts[i] = new
        merges.append((pair, float(left[pair])))
    return merges


def learned(histories, first: int, num_merges: int) -> list[tuple[tuple[int, int], float]]:
    merges = learn_merges([np.array(history) for history in histories], first, num_merges)
    return [(tuple(pair), weight) for pair, weight in zip(merges.pairs.tolist(), merges.weights, strict=True)]


def test_released_merges():
    merges = recount([[A, B], [A, B], [C, B]], 7, 7, forgets=True)
    assert [pair for pair, _ in merges] == [(4, 5), (2, 5), (2, 4), (1, 3), (7, 8), (7, 10), (10, 11)]
    assert [round(weight, 4) for _, weight in merges[:5]] == [2.3333, 2.6667, 2.3333, 2.0, 2.0]
    single = [[(1,), (2,), (1,), (2,)], [(2,), (1,), (3,)]]
    assert recount(single, 4, 2, forgets=True) == [((1, 2), 4.0), ((1, 3), 1.0)]


def test_merges_by_hand():
    merges = learned([[A, B], [A, B], [C, B]], 7, 7)
    assert merges[0] == ((4, 5), pytest.approx(7 / 3))
    # Then both histories A B are {1, 3} 7 {2, 5}, and C B is {1, 6} 7 {2, 4}: (1, 3) and (2, 5) stand together twice.
    assert merges[1:3] == [((1, 3), 2.0), ((2, 5), 2.0)]
    # Both A B are {8} 7 {9}.
    assert merges[3:5] == [((7, 8), 2.0), ((9, 10), 2.0)]


def test_one_feature_per_item_is_byte_pair_encoding_without_order():
    single = [[(1,), (2,), (1,), (2,)], [(2,), (1,), (3,)]]
    assert learned(single, 4, 2) == [((1, 2), 4.0), ((3, 4), 1.0)]


@pytest.mark.parametrize(("kinds", "size"), [(5, 3), (3, 8), (1, 12)])
def test_heap_equals_a_recount(kinds, size):
    rng = np.random.default_rng(0)
    histories = [(rng.integers(0, size, (8, kinds)) + size * np.arange(kinds)).tolist() for _ in range(50)]
    merges = learned(histories, kinds * size, 60)
    assert merges == [(pair, pytest.approx(weight)) for pair, weight in recount(histories, kinds * size, 60)]
    assert len(merges) == 60


def test_merges_end_when_one_piece_is_left():
    assert learned([[A]], 7, 100) == [((1, 3), pytest.approx(2 / 3)), ((5, 7), 1.0)]
    assert learned([[(1,)]], 7, 100) == []
