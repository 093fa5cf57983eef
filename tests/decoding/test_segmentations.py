"""Rankings of several segmentations are merged by ranks, and a search over pieces finds what scoring all items does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SegmentedDecoder, SidDecoder
from llmrec.decoding.search import fuse_ranks
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.history.choice import make_history_encoder
from llmrec.model.new_rows import add_rows
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.decoding import NORMALIZE_OVER, assert_same, brute_force, filled, generate
from tests.support.pieces import piece_table


def test_credit_of_ranks():
    """Leaf 7 is first in two lists, second in one, fourth in one, and absent from one: 1 + 1 + .6309 + .4307."""
    lists = [[7, 0, 1, 2], [7, 1, 2, 3], [0, 7, 1, 2], [0, 1, 2, 7], [0, 1, 2, 3]]
    leaves, scores = fuse_ranks(torch.tensor([lists]), num_leaves=9)
    most = 5 * sum(1 / np.log2(rank + 2) for rank in range(4))
    credits = scores[0].exp() * most
    assert leaves[0, :2].tolist() == [0, 7]  # 0 has 3 first places and a second one
    assert float(credits[1]) == pytest.approx(3.0616, abs=1e-4)
    assert float(credits[0]) == pytest.approx(3 + 1 / np.log2(3), abs=1e-4)


def test_lists_that_are_short():
    leaves, scores = fuse_ranks(torch.tensor([[[3, -1, -1], [-1, -1, -1]]]), num_leaves=5)
    assert leaves.tolist() == [[3, -1, -1]] and scores[0, 1:].isneginf().all()


def test_equal_credits_are_settled_by_the_order_of_the_trie():
    leaves, scores = fuse_ranks(torch.tensor([[[8, 2], [2, 8]], [[8, 0], [0, 8]]]), num_leaves=9)
    assert leaves.tolist() == [[2, 8], [0, 8]] and scores[0, 0] == scores[0, 1]
    many = torch.arange(40).flip(0).view(1, 40, 1)  # each leaf is first in one list
    assert fuse_ranks(many, num_leaves=40)[0].tolist() == [[0]]


@pytest.fixture(scope="module")
def problem():
    table, tokenizer = piece_table(), word_tokenizer()
    model = tiny_llm(len(tokenizer)).eval()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, segmentations=5)
    add_rows(model, vocabulary, 0, None, table.pieces)
    return model, table, SidTrie(table), vocabulary, make_history_encoder(table, vocabulary)


@pytest.fixture(scope="module")
def prompt(problem) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[4, *problem[-1].encode_history([3, 6, 1]).tolist()]])
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_the_search_finds_what_scoring_all_items_finds(problem, prompt, normalize_over):
    model, _, trie, vocabulary, _ = problem
    beams = tree_beam_search(model, *prompt, trie, vocabulary, 12, normalize_over)
    assert_same(filled(beams), brute_force(model, *prompt, trie, vocabulary, normalize_over))


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_generate_finds_the_same(problem, prompt, normalize_over):
    model, _, trie, vocabulary, _ = problem
    beams = tree_beam_search(model, *prompt, trie, vocabulary, 4, normalize_over)
    assert_same(filled(beams), generate(model, *prompt, trie, vocabulary, 4, normalize_over))


def leaves_in_order(problem, history: list[int], way: int) -> list[int]:
    """Leaves by their scores after one way of writing a history, best first."""
    model, _, trie, vocabulary, encoder = problem
    pieces = encoder.encode_history(history, np.random.default_rng((way, *history)))
    ids = torch.tensor([[4, *pieces.tolist()]])
    scored = brute_force(model, ids, torch.ones_like(ids), trie, vocabulary, "vocabulary")[0]
    codes = [[*sid, *[EMPTY] * (trie.num_levels - len(sid))] for sid, _ in scored]
    return [trie.codes_of(torch.arange(12)).tolist().index(each) for each in codes]


def test_several_ways_are_merged_as_by_hand(problem):
    model, _, trie, vocabulary, encoder = problem
    decoder = SidDecoder(model, trie, vocabulary, 12, prefix_ids=torch.tensor([4]))
    leaves, scores, invalid = SegmentedDecoder(decoder, encoder, 3).search([np.array([3, 6, 1]), np.array([2])])
    assert invalid.tolist() == [0, 0]
    credit = np.zeros(12)
    for way in range(3):
        credit[leaves_in_order(problem, [3, 6, 1], way)] += 1 / np.log2(np.arange(12) + 2)
    np.testing.assert_allclose(credit[leaves[0]], np.sort(credit)[::-1], atol=1e-5)
    most = 3 * (1 / np.log2(np.arange(12) + 2)).sum()
    np.testing.assert_allclose(scores[0].exp() * most, np.sort(credit)[::-1], atol=1e-4)


def test_filters_and_one_way(problem):
    model, _, trie, vocabulary, encoder = problem
    decoder = SidDecoder(model, trie, vocabulary, 12, prefix_ids=torch.tensor([4]))
    histories = [np.array([3, 6, 1]), np.array([2])]
    leaves, scores, _ = SegmentedDecoder(decoder, encoder, 5).search(histories, exclude=[np.arange(6), np.arange(3)])
    for user, barred in enumerate((6, 3)):
        items = [int(trie.items(leaf)[0]) for leaf in leaves[user].tolist() if leaf >= 0]
        assert sorted(items) == list(range(barred, 12)) and scores[user, len(items) :].isneginf().all()
    alone, scores, _ = SegmentedDecoder(decoder, encoder, 1).search([np.array([2])])
    assert alone[0].tolist() == leaves_in_order(problem, [2], 0)
    assert float(scores.exp().sum()) < 1, "log-probabilities"


def test_a_score_that_is_nan_shows(problem):
    _, table, trie, vocabulary, encoder = problem
    model = tiny_llm(len(word_tokenizer())).eval()
    add_rows(model, vocabulary, 0, None, table.pieces)
    decoder = SidDecoder(model, trie, vocabulary, 12, prefix_ids=torch.tensor([4]))
    with torch.no_grad():
        model.get_output_embeddings().weight[vocabulary.starts[0] + 3] = torch.nan
    scores = SegmentedDecoder(decoder, encoder, 2).search([np.array([2])])[1]
    assert scores.isnan().any()
