"""Ranking by aliases, against sums of the model's own forward passes over 40 items."""

import numpy as np
import pytest
import torch

from llmrec.decoding.aliases.search import AliasSearch
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.evaluation.ranking import UNFILLED, ScoresNotFinite
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.sid.aliases import aliases_of, join_aliases
from llmrec.sid.codes import EMPTY
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer

PREFIX, NUM_ITEMS = [4, 5], 40
HISTORIES = [np.array([0]), np.array([7, 3, 39]), np.array([12, 1])]
ITEM_IDS = [f"item-{row}" for row in range(NUM_ITEMS)]


def table_of(share_codes: bool, ragged: bool = False) -> SidTable:
    """Three aliases of 40 items, codes in 4 x 4 x 4 at random; a tenth of the ragged SIDs ends early."""
    rng, aliases = np.random.default_rng(0), []
    for _ in range(3):
        places = rng.permutation(64)[:NUM_ITEMS]
        codes = np.stack([places // 16, places // 4 % 4, places % 4], axis=1)
        if ragged:
            alone = np.flatnonzero(np.bincount(places // 4, minlength=16)[places // 4] == 1)
            codes[alone, 2] = EMPTY
        aliases.append(codes)
    return join_aliases(ITEM_IDS, aliases, [4, 4, 4], share_codes)


def ranker_of(table, normalize_over="level", **options) -> SidRanker:
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    sid_config = SidConfig(vocabulary, Prompt(), 3, normalize_over)
    return SidRanker(tiny_llm(len(tokenizer)), table, sid_config, PREFIX, **options)


@torch.no_grad()
def log_probs(ranker, history, table, row, normalize_over) -> float:
    """Log-probability of an item in one alias, one forward pass of the whole model for each item."""
    vocabulary = ranker.sid_config.vocabulary
    before = [t for item in history[-3:] for t in vocabulary.token_ids(table.codes([item])[0]).tolist() if t != EMPTY]
    codes = [code for code in table.codes([row])[0].tolist() if code != EMPTY]
    answer = [vocabulary.starts[level] + code for level, code in enumerate(codes)]
    logits = ranker.model(torch.tensor([[*PREFIX, *before, *answer]])).logits[0, -len(answer) - 1 : -1].float()
    total = 0.0
    for level, (scores, token) in enumerate(zip(logits, answer, strict=True)):
        legal = range(len(scores))
        if normalize_over != "vocabulary":
            legal = list(range(vocabulary.starts[level], vocabulary.starts[level] + vocabulary.level_sizes[level]))
        if normalize_over == "children":
            under = (table.all_codes[:, :level] == codes[:level]).all(axis=1) & (table.all_codes[:, level] != EMPTY)
            legal = [vocabulary.starts[level] + code for code in np.unique(table.all_codes[under, level]).tolist()]
        total += float(scores[token] - scores[list(legal)].logsumexp(0))
    return total


def mean_scores(ranker, history) -> np.ndarray:
    """(N,) mean over the aliases of each item's log-probability."""
    tables, mode = aliases_of(ranker.table), ranker.sid_config.normalize_over
    each = [[log_probs(ranker, history, table, row, mode) for row in range(NUM_ITEMS)] for table in tables]
    return np.mean(each, axis=0)


@pytest.mark.parametrize(
    ("share_codes", "ragged", "normalize_over"),
    [(False, False, "level"), (True, False, "vocabulary"), (False, True, "children")],
)
def test_scores_are_sums_by_hand_over_40_items(share_codes, ragged, normalize_over):
    ranker = ranker_of(table_of(share_codes, ragged), normalize_over)
    found = ranker.rank(HISTORIES, k=NUM_ITEMS)
    for history, items, scores in zip(HISTORIES, found.items, found.scores, strict=True):
        expected = mean_scores(ranker, history)
        assert sorted(items[items != UNFILLED].tolist()) == list(range(NUM_ITEMS))  # each once
        np.testing.assert_allclose(scores, expected[items], atol=1e-4)
        assert (np.diff(scores) <= 0).all()
    assert found.invalid.sum() == 0


def test_the_union_holds_what_each_alias_finds():
    ranker = ranker_of(table_of(share_codes=False))
    search = ranker._make_decoder(15)
    assert isinstance(search, AliasSearch)
    scores_BN, _ = search.scores(HISTORIES)
    union, singles = scores_BN.isfinite(), []
    for alias in search.aliases:
        is_found, _, _ = alias.find(alias.prompts(HISTORIES), None, None)
        assert is_found.sum(dim=1).tolist() == [5, 5, 5]  # a third of the beams
        singles.append(is_found)
    assert torch.equal(union, torch.stack(singles).any(dim=0))
    assert not all(torch.equal(singles[0], other) for other in singles[1:])


def test_candidates_that_one_alias_lacks_are_scored_in_it_too():
    ranker = ranker_of(table_of(share_codes=False))
    found = ranker.rank(HISTORIES[:1], k=3, num_beams=9)
    expected = mean_scores(ranker, HISTORIES[0])
    items = found.items[0][found.items[0] != UNFILLED]
    assert 3 < len(items) <= 9
    np.testing.assert_allclose(found.scores[0][: len(items)], expected[items], atol=1e-4)


def test_filters_hold_in_every_alias():
    ranker = ranker_of(table_of(share_codes=True))
    allowed = AllowList(ranker.trie, range(0, NUM_ITEMS, 2))
    exclude = [np.array([0, 2]), np.array([4]), np.array([], np.int64)]
    found = ranker.rank(HISTORIES, k=10, exclude=exclude, allow=[allowed, None, [7, 8]])
    first, second, third = (set(items[items != UNFILLED].tolist()) for items in found.items)
    assert first <= set(range(4, NUM_ITEMS, 2)) and len(first) >= 10
    assert 4 not in second and third == {7, 8}


def test_one_alias_is_the_plain_ranking():
    table = aliases_of(table_of(share_codes=True))[0]
    one = join_aliases(ITEM_IDS, [table.all_codes], table.level_sizes, share_codes=False)
    assert one.sha256 == table.sha256
    assert not isinstance(ranker_of(one)._make_decoder(5), AliasSearch)


def test_items_that_no_alias_tells_apart_tie_side_by_side():
    codes = [[0, 1], [1, 0], [0, 1], [1, 1], [0, 0]]
    others = [[1, 1], [0, 0], [1, 1], [0, 0], [1, 0]]  # 0 and 2 are twins; 1 and 3 share one SID of two
    table = join_aliases(ITEM_IDS[:5], [np.array(codes), np.array(others)], [2, 2], share_codes=True)
    found = ranker_of(table).rank([np.array([0]), np.array([3, 4])], k=5)
    for items, groups, scores in zip(found.items, found.groups, found.scores, strict=True):
        assert sorted(items[:5].tolist()) == list(range(5))
        places = [items.tolist().index(item) for item in range(5)]
        assert abs(places[0] - places[2]) == 1 and scores[places[0]] == scores[places[2]]
        assert groups[places[0]] == groups[places[2]] and len(set(groups[:5].tolist())) == 4


def test_a_model_that_is_not_finite_is_refused():
    ranker = ranker_of(table_of(share_codes=True))
    ranker.model.get_input_embeddings().weight.data[ranker.sid_config.vocabulary.starts[1]] = torch.nan
    with pytest.raises(ScoresNotFinite, match="not finite"):
        ranker.rank(HISTORIES, 5)
