"""Pieces: values of the released code of ActionPiece, whose numbers start at 1; here they start at 0."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

from llmrec.model.micro import word_tokenizer
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.pieces.feature_sets import Node, Place, flatten, merge_everywhere, places
from llmrec.sid.pieces.pieces import Pieces
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

CODES = {"A": (0, 0, 0), "B": (1, 1, 0), "C": (0, 1, 1)}
RELEASED = [(4, 5), (2, 5), (2, 4), (1, 3), (7, 8), (7, 10), (10, 11)]
PIECES = Pieces((2, 2, 2), np.array(RELEASED) - 1, np.array([7 / 3, 8 / 3, 7 / 3, 2.0, 2.0, 2.0, 2.0]))


def features(items: str) -> np.ndarray:
    return PIECES.features(np.array([CODES[item] for item in items]))


def weights(nodes: list[Node]) -> dict[tuple[int, int], Fraction]:
    found: dict[tuple[int, int], Fraction] = {}
    for place in every_place(nodes):
        pair = (place.pair[0] + 1, place.pair[1] + 1)
        found[pair] = found.get(pair, Fraction(0)) + 1 / Fraction(place.cells)
    return found


def every_place(nodes: list[Node]) -> list[Place]:
    return [
        place for node, following in zip(nodes, [*nodes[1:], None], strict=True) for place in places(node, following)
    ]


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
            pair = rng.choice([place.pair for place in every_place(nodes)])
            nodes = merge_everywhere(nodes, tuple(pair.tolist()), piece)
            if not all(node.pieces for node in nodes):
                break  # an empty set keeps its neighbours apart
            assert sum(weights(nodes).values()) == len(flatten(nodes)) - 1
            checked, shortest = checked + 1, min(shortest, len(flatten(nodes)))
    assert checked > 300 and shortest < 40


def test_a_merge_saves_its_weight_on_average():
    """Over all orders of A and B, a pair is merged as often as it weighs; 5 is in both sets and may stand twice."""
    one, other = features("AB").tolist()
    orders = [list(a + b) for a in itertools.permutations(one) for b in itertools.permutations(other)]
    for pair, weight in weights(nodes_of("AB")).items():
        if 5 in pair and pair != (5, 5):
            continue
        merged = Pieces((2, 2, 2), np.array([pair]) - 1, np.ones(1))
        assert np.mean([6 - len(merged.merge(list(order))) for order in orders]) == pytest.approx(float(weight))


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


def test_saved_pieces():
    loaded = Pieces.from_dict(json.loads(json.dumps(PIECES.to_dict())))
    assert loaded == PIECES and loaded.kind_sizes == (2, 2, 2)
    assert loaded.segment_fixed(features("AB")) == PIECES.segment_fixed(features("AB"))


def test_answers():
    answers = PIECES.answers(features("ABC"))
    assert (answers + 1).tolist() == [[10, 5, 0], [8, 4, 0], [1, 4, 6]]
    assert (PIECES.items(answers) == features("ABC")).all()
    with pytest.raises(ValueError, match="row 1 has the pieces"):
        PIECES.items(np.array([[9, 4, -1], [9, 3, -1]]))  # the second has two features of a kind, and one of none


@pytest.mark.parametrize("pairs", [[(5, 3)], [(0, 6)], [(0, 1), (0, 1)], [(-1, 0)]])
def test_merges_that_cannot_be(pairs):
    with pytest.raises(ValueError, match="two earlier pieces"):
        Pieces((2, 2, 2), np.array(pairs), np.ones(len(pairs)))


def test_pieces_that_would_unfold_without_end():
    doubling = [(0, 1), *((piece, piece) for piece in range(2, 62))]
    with pytest.raises(ValueError, match="at most 67,108,864 can be read"):
        Pieces((1, 1), np.array(doubling), np.ones(len(doubling)))


def test_a_table_of_pieces(tmp_path):
    table = SidTable(list("ABC"), PIECES.answers(features("ABC")), pieces=PIECES)
    assert table.level_sizes == [len(PIECES)] * 3 and table.lengths.tolist() == [2, 2, 3]
    table.save(tmp_path)
    loaded = SidTable.load(tmp_path)
    assert loaded.sha256 == table.sha256 and loaded.pieces == PIECES
    other = Pieces(PIECES.kind_sizes, PIECES.pairs, PIECES.weights * 2)  # another order of merges, perhaps
    assert SidTable(list("ABC"), table.all_codes, pieces=other).sha256 != table.sha256
    with pytest.raises(ValueError, match="not those of one item"):
        SidTable(list("AB"), [[9, 4, -1], [9, 3, -1]], pieces=PIECES)
    with pytest.raises(ValueError, match="there is a piece 99"):
        SidTable(["A"], [[99, 4, -1]], pieces=PIECES)


def test_tokens_of_pieces_are_the_same_at_every_level():
    tokenizer = word_tokenizer(["red apple"], max_words=64)
    before = len(tokenizer)
    vocabulary = SidVocabulary.add_to(tokenizer, [len(PIECES)] * 3, segmentations=5)
    assert vocabulary.token_range == vocabulary.added_range == range(before, before + len(PIECES))
    assert vocabulary.token_ids(np.array([[9, 4, -1]])).tolist() == [[before + 9, before + 4, -1]]
    assert tokenizer.tokenize("red <p_9><p_4>") == ["red", "<p_9>", "<p_4>"]
    assert vocabulary.text(np.array([[9, 4, -1]])) == "<p_9><p_4>"
    assert SidVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentations": -1}, "an integer from 0 to 64"),
        ({"starts": (100, 113, 126)}, "the same block"),
        ({"items": ItemTokens(114, 3)}, "neither words, item tokens nor a head"),
        ({"template": "<{letter}_{code}>"}, "alone"),
    ],
)
def test_vocabularies_of_pieces_that_cannot_be(change, message):
    values = {"level_sizes": (13, 13, 13), "starts": (100,) * 3, "block_sizes": (13, 13, 13), "eos_token_id": 2,
              "template": "<p_{code}>", "segmentations": 5}  # fmt: skip
    SidVocabulary(**values)
    with pytest.raises(ValueError, match=message):
        SidVocabulary(**(values | change))
