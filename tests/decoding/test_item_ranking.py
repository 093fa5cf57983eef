"""Ranking by item rows and by mixtures, compared with sums over the whole catalogue, and five lines of transformers."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.sid.aliases import aliases_of
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.decoding import owners, prompts, tables

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"
PREFIX = [4, 5]
HISTORIES = [np.array(rows) for rows in ([0], [1, 3, 0, 1], [2, 1])]
EVERY_MODE = pytest.mark.parametrize("rank", ["items", "mixture"])


def parts_of(table, architecture="qwen3", tied=True, weight=0.5):
    """Model and SidConfig of a table whose items have rows."""
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, num_items=table.num_items)
    sid_config = SidConfig(vocabulary, Prompt(), 3, "level", weight)
    return tiny_llm(len(tokenizer), architecture, tied), sid_config


def ranker_of(table, rank, capture=None, **options):
    model, sid_config = parts_of(table, **options)
    return SidRanker(model, table, sid_config, PREFIX, capture=capture, rank=rank)


@torch.no_grad()
def item_probabilities(ranker, history) -> torch.Tensor:
    """(N,) softmax over the input rows of the item tokens, from the model's own forward pass alone."""
    items = ranker.sid_config.vocabulary.items
    ids = torch.tensor([[*PREFIX, *ranker.encoder.encode_history(history[-3:])]])
    state = ranker.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    weight = ranker.model.get_input_embeddings().weight
    return torch.stack([weight[items.start + row] @ state for row in range(items.num_items)]).softmax(0)


def sid_probabilities(ranker, history, num_beams) -> torch.Tensor:
    """(N,) probability of each item's best beam, 0 outside the beam."""
    ids = torch.tensor([[*PREFIX, *ranker.encoder.encode_history(history[-3:])]])
    decoder = SidDecoder(ranker.model, ranker.trie, ranker.sid_config.vocabulary, num_beams, "level")
    beams, by_item = decoder(ids), torch.zeros(ranker.table.num_items)
    owner = owners(ranker.table)
    for codes, score in zip(beams.codes[0].tolist(), beams.scores[0], strict=True):
        for row in owner.get(tuple(code for code in codes if code >= 0), []):
            by_item[row] = max(by_item[row], score.exp())
    return by_item


def assert_ranked(ranking, place, expected: torch.Tensor):
    """The items of a ranking have the expected probabilities, none that is larger is left out."""
    items = ranking.items[place][ranking.items[place] >= 0]
    np.testing.assert_allclose(np.exp(ranking.scores[place][: len(items)]), expected[items], rtol=1e-4)
    best = expected.sort(descending=True).values[: len(items)]
    np.testing.assert_allclose(expected[items], best, rtol=1e-4)
    assert len(set(items.tolist())) == len(items) == min(ranking.items.shape[1], int((expected > 0).sum()))


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "gemma3_text", "gemma2", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_items_are_ranked_by_the_state_times_their_input_rows(sid_table, architecture, tied):
    ranker = ranker_of(sid_table, "items", architecture=architecture, tied=tied)
    ranking = ranker.rank(HISTORIES, k=12)
    for place, history in enumerate(HISTORIES):
        assert_ranked(ranking, place, item_probabilities(ranker, history))
    assert ranking.items.shape == (3, 12) and ranking.invalid.tolist() == [0, 0, 0]


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(1, 14), st.sampled_from([0.0, 0.3, 1.0]), st.data())
def test_a_mixture_is_a_sum_over_the_whole_catalogue(table, num_beams, weight, data):
    """Also where items share SIDs, have several of them, or SIDs differ in length; outside the beam p_sid is 0."""
    assume(len(aliases_of(table)) == 1)  # `extend` refuses item rows for aliases, which are ranked otherwise
    ranker = ranker_of(table, "mixture", weight=weight)
    rows = st.lists(st.integers(0, table.num_items - 1), min_size=1, max_size=5)
    histories = [np.array(rows) for rows in data.draw(st.lists(rows, min_size=1, max_size=3))]
    num_beams = min(num_beams, ranker.trie.num_leaves)
    ranking = ranker.rank(histories, k=1, num_beams=num_beams)
    for place, history in enumerate(histories):
        by_sid, by_rows = sid_probabilities(ranker, history, num_beams), item_probabilities(ranker, history)
        assert_ranked(ranking, place, (1 - weight) * by_sid + weight * by_rows)


def test_weights_0_and_1_rank_as_sids_and_as_items_do(sid_table):
    rankings = {}
    for name, rank, weight in (
        ("sid", "sid", 0.5),
        ("0", "mixture", 0.0),
        ("items", "items", 0.5),
        ("1", "mixture", 1.0),
    ):
        rankings[name] = ranker_of(sid_table, rank, weight=weight).rank(HISTORIES, k=12)
    assert np.array_equal(rankings["items"].items, rankings["1"].items)
    np.testing.assert_allclose(rankings["items"].scores, rankings["1"].scores, atol=1e-5)
    np.testing.assert_allclose(rankings["sid"].scores, rankings["0"].scores, atol=1e-5)
    for sid, mixed in zip(rankings["sid"].items, rankings["0"].items, strict=True):
        assert set(sid[:12]) == set(mixed)  # items 4 and 5 share a SID, and may change places


@EVERY_MODE
def test_filters_bar_items_and_change_no_other_score(sid_table, rank):
    ranker = ranker_of(sid_table, rank)
    exclude = [np.array([0, 4]), np.array([], dtype=np.int64), np.array([7])]
    stock = np.array([0, 2, 4, 5, 9])
    plain = ranker.rank(HISTORIES, k=12)
    for allow in (None, [stock, None, stock], [stock, stock, np.array([7])]):
        found = ranker.rank(HISTORIES, k=12, exclude=exclude, allow=allow)
        for place in range(3):
            allowed = set(range(12)) if allow is None or allow[place] is None else set(allow[place].tolist())
            kept = [item for item in plain.items[place] if item in allowed - set(exclude[place].tolist())]
            items = found.items[place]
            assert items[items >= 0].tolist() == kept
            assert (items[len(kept) :] == -1).all() and np.isneginf(found.scores[place][len(kept) :]).all()


@EVERY_MODE
def test_a_batch_answers_as_its_requests_do_alone(sid_table, rank):
    ranker = ranker_of(sid_table, rank)
    together = ranker.rank(HISTORIES, k=12)
    for place, history in enumerate(HISTORIES):
        alone = ranker.rank([history], k=12)
        np.testing.assert_allclose(alone.scores[0], together.scores[place], atol=1e-4)


@EVERY_MODE
def test_padding_to_the_size_of_a_graph_changes_no_answer(sid_table, rank, monkeypatch):
    kinds = set()

    class Uncaptured:
        def run(self, function, inputs, kind):
            kinds.add(kind)
            return function(*inputs)

    monkeypatch.setattr("llmrec.decoding.tree_forward.CudaGraphs", Uncaptured)
    padded, plain = (ranker_of(sid_table, rank, capture=on).rank(HISTORIES, k=12) for on in (True, False))
    np.testing.assert_allclose(padded.scores, plain.scores, atol=1e-5)
    assert np.array_equal(padded.items, plain.items)
    assert kinds == {("_read",) if rank == "items" else ("_search",)}


def test_read_returns_the_states_that_a_search_starts_from(sid_table):
    model, sid_config = parts_of(sid_table)
    decoder = SidDecoder(model, SidTrie(sid_table), sid_config.vocabulary, 3)
    ids, mask = prompts()
    states = decoder.search(ids, mask)[1]
    assert torch.equal(decoder.read(ids, mask), states) and states.shape == (3, 32)


def test_a_checkpoint_without_item_rows_is_refused(sid_table, llm, vocabulary):
    for rank in ("items", "mixture"):
        with pytest.raises(ValueError, match="has no item rows, so it ranks by 'sid' only"):
            SidRanker(llm, sid_table, SidConfig(vocabulary, Prompt(), 3, "level"), PREFIX, rank=rank)


def test_the_lines_of_the_docs_rank_as_the_recommender_does(sid_table):
    block = next(
        text for text in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "get_input_emb" in text
    )
    model, sid_config = parts_of(sid_table)
    sid_config = dataclasses.replace(sid_config, max_history=10)
    tokenizer = word_tokenizer()
    SidVocabulary.add_to(tokenizer, sid_table.level_sizes, num_items=12)
    history = ["item-3", "item-6", "item-1"]
    ids, mask = sid_config.encode(sid_table.find_items({"history": history}), sid_table, tokenizer)
    namespace = {"model": model, "sid_config": sid_config, "table": sid_table, "torch": torch,
                 "inputs": {"input_ids": ids, "attention_mask": mask}}  # fmt: skip
    exec(compile(block, str(DOCS), "exec"), namespace)
    assert len([line for line in block.splitlines() if line]) == 5
    recommender = Recommender(model, tokenizer, sid_table, sid_config, rank="items")
    item_ids, scores = recommender.recommend([history], k=10, exclude=None)
    assert namespace["item_ids"] == item_ids[0]
    np.testing.assert_allclose(namespace["best"].values[0].detach(), scores[0], atol=1e-5)


@pytest.mark.gpu
@EVERY_MODE
def test_captured_rankings_equal_eager_ones(sid_table, rank):
    model, sid_config = parts_of(sid_table)
    captured, eager = (
        SidRanker(model.cuda(), sid_table, sid_config, PREFIX, capture=on, rank=rank) for on in (True, False)
    )
    exclude = [np.array([0, 4]), np.array([], dtype=np.int64), np.array([7])]
    for _ in range(3):  # as they are, then captured, then replayed
        found, expected = (ranker.rank(HISTORIES, 12, exclude) for ranker in (captured, eager))
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert np.array_equal(found.items, expected.items)
