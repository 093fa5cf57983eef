"""Pieces: values of the released code of ActionPiece, whose numbers start at 1; here they start at 0."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from llmrec.sid.feature_sets import Node, flatten, merge_everywhere, places
from llmrec.sid.pieces import FILE, Pieces

CODES = {"A": (0, 0, 0), "B": (1, 1, 0), "C": (0, 1, 1)}
RELEASED = [(4, 5), (2, 5), (2, 4), (1, 3), (7, 8), (7, 10), (10, 11)]
PIECES = Pieces((2, 2, 2), np.array(RELEASED) - 1, np.array([7 / 3, 8 / 3, 7 / 3, 2.0, 2.0, 2.0, 2.0]))


def features(items: str) -> np.ndarray:
    return PIECES.features(np.array([CODES[item] for item in items]))


def weights(nodes: list[Node]) -> dict[tuple[int, int], Fraction]:
    found: dict[tuple[int, int], Fraction] = {}
    for place in places(nodes):
        pair = (place.pair[0] + 1, place.pair[1] + 1)
        found[pair] = found.get(pair, Fraction(0)) + 1 / Fraction(place.cells)
    return found


def nodes_of(items: str) -> list[Node]:
    return [Node(tuple(item)) for item in features(items).tolist()]


def test_weights_of_a_history():
    found = weights(nodes_of("AB"))
    assert found[1, 3] == found[2, 4] == Fraction(2, 3)  # within a set of three
    assert found[1, 2] == found[5, 5] == Fraction(1, 9)  # across two sets of three
    assert found[1, 5] == Fraction(7, 9)  # within A, and across with the 5 of B
    assert sum(found.values()) == 5  # six pieces less one


def test_weights_of_a_corpus():
    total = {pair: sum(weights(nodes_of(items)).get(pair, 0) for items in ("AB", "AB", "CB"))
             for pair in [(4, 5), (2, 5), (2, 4), (1, 5)]}  # fmt: skip
    assert [round(float(weight), 4) for weight in total.values()] == [2.3333, 2.2222, 2.1111, 1.6667]


def test_each_merge_lowers_the_weights_by_the_pieces_that_it_saves():
    checked, shortest = 0, 60
    for seed in range(50):
        rng = np.random.default_rng(seed)
        nodes = [Node(tuple(item)) for item in (rng.integers(0, 4, (12, 5)) + 4 * np.arange(5)).tolist()]
        for piece in range(20, 60):
            pair = rng.choice([place.pair for place in places(nodes)])
            nodes = merge_everywhere(nodes, tuple(pair.tolist()), piece)
            if not all(node.pieces for node in nodes):
                break  # an empty set keeps its neighbours apart
            assert sum(weights(nodes).values()) == len(flatten(nodes)) - 1
            checked, shortest = checked + 1, min(shortest, len(flatten(nodes)))
    assert checked > 300 and shortest < 40


@pytest.mark.parametrize(
    ("items", "pieces"), [("A", [10, 5]), ("B", [8, 4]), ("C", [1, 4, 6]), ("AB", [12, 8])]
)  # fmt: skip
def test_fixed_segmentation(items, pieces):
    assert [piece + 1 for piece in PIECES.segment_fixed(features(items))] == pieces


def test_drawn_segmentations():
    one, other = features("AB").tolist()
    orders = [list(a + b) for a in itertools.permutations(one) for b in itertools.permutations(other)]
    every = [tuple(PIECES.merge(order)) for order in orders]
    assert len(set(every)) == 15
    assert round(np.mean([len(pieces) for pieces in every]), 2) == 3.56
    rng = np.random.default_rng(0)
    drawn = {tuple(PIECES.segment(features("AB"), rng)) for _ in range(2000)}
    assert drawn == set(every)


def test_a_segmentation_has_the_features_of_its_items():
    rng = np.random.default_rng(0)
    for items in ("A", "AB", "CBA", "BBCAC"):
        whole = sorted(features(items).reshape(-1).tolist())
        assert PIECES.features_of(PIECES.segment_fixed(features(items))) == whole
        for _ in range(20):
            assert PIECES.features_of(PIECES.segment(features(items), rng)) == whole


def test_the_same_generator_draws_the_same():
    draws = [PIECES.segment(features("ABCAB"), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_saved_pieces(tmp_path):
    PIECES.save(tmp_path)
    loaded = Pieces.load(tmp_path)
    assert loaded.sha256 == PIECES.sha256 and loaded.kind_sizes == (2, 2, 2)
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is not pieces"):
        Pieces.load(tmp_path)
    with pytest.raises(ValueError, match="method action_piece writes it"):
        Pieces.load(tmp_path / "nowhere")


@pytest.mark.parametrize("pairs", [[(5, 3)], [(0, 6)], [(0, 1), (0, 1)], [(-1, 0)]])
def test_merges_that_cannot_be(pairs):
    with pytest.raises(ValueError, match="two earlier pieces"):
        Pieces((2, 2, 2), np.array(pairs), np.ones(len(pairs)))
