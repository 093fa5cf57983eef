"""Draws under the trie against brute force over children: their probabilities, their frequencies, and what is legal."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decoding.sampling import tree_sample
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from tests.conftest import tiny_llm
from tests.support.decoding import (
    assert_same,
    brute_force,
    draw_filter,
    filled,
    prompts,
    setting,
    tables,
    vocabulary_of,
)

NUM_ROWS = 4000
MODES = pytest.mark.parametrize("replacement", [False, True])


@pytest.fixture
def ragged_table():
    """8 SIDs of one to three codes."""
    codes = [[0, 0, EMPTY], [0, 1, 0], [0, 1, 1], [1, EMPTY, EMPTY], [2, EMPTY, EMPTY], [3, 0, 0], [3, 0, 1],
             [3, 1, EMPTY]]  # fmt: skip
    return SidTable([f"item-{row}" for row in range(len(codes))], codes)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_temperature(model, temperature):
    """A model whose logits are those of another, divided; brute force then knows of no temperature."""
    model.set_output_embeddings(torch.nn.Linear(32, model.config.vocab_size, bias=False))
    model.lm_head.weight.data = model.get_input_embeddings().weight.data / temperature
    return model


def probabilities(model, trie, vocabulary, ids, permitted=None):
    """SID -> probability of the SIDs that one prompt may draw."""
    mask = torch.ones_like(ids[:1])
    permitted = None if permitted is None else [permitted]
    scored = brute_force(model, ids[:1], mask, trie, vocabulary, "children", permitted)[0]
    return {sid: np.exp(score) for sid, score in scored}


def repeated(length=4, seed=0):
    """One prompt in many rows."""
    return prompts((length,), seed)[0].expand(NUM_ROWS, -1)


def assert_frequent(drawn, expected):
    """Pearson's statistic stays below the value that one in a million fair samples exceeds, for up to 13 SIDs."""
    counts, total = Counter(drawn), len(drawn)
    assert set(counts) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    statistic = sum((counts[sid] - total * p) ** 2 / (total * p) for sid, p in expected.items())
    assert statistic < 52, f"{statistic}: {counts}"


# Probabilities


@MODES
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_scores_are_log_probabilities_at_the_temperature(sid_table, architecture, temperature, replacement):
    vocabulary, size = vocabulary_of(sid_table)
    trie, (ids, mask) = SidTrie(sid_table), prompts()
    drawn = tree_sample(
        tiny_llm(size, architecture), ids, mask, trie, vocabulary, 6, replacement, temperature, seeded()
    )
    scaled = with_temperature(tiny_llm(size, architecture), temperature)
    expected = [dict(row) for row in brute_force(scaled, ids, mask, trie, vocabulary, "children")]
    for row, by_sid in zip(filled(drawn), expected, strict=True):
        assert len(row) == 6
        assert [score for _, score in row] == pytest.approx([by_sid[sid] for sid, _ in row], abs=1e-4)


def test_a_soft_cap_comes_before_the_temperature(sid_table):
    model, trie, vocabulary = setting(sid_table, "gemma2")
    model.config.final_logit_softcapping = 0.5
    ids, mask = prompts((3,))
    every = filled(tree_sample(model, ids, mask, trie, vocabulary, 11, temperature=0.1, generator=seeded()))[0]
    with torch.no_grad():
        first = model(ids).logits[0, -1, vocabulary.block(0)].double() / 0.1
    for code, log_prob in enumerate(first.log_softmax(0).tolist()):
        assert np.log(sum(np.exp(s) for sid, s in every if sid[0] == code)) == pytest.approx(log_prob, abs=1e-4)


# Frequencies


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_replacement_frequencies_are_probabilities(sid_table, ragged_table, temperature):
    for table in (sid_table, ragged_table):
        model, trie, vocabulary = setting(table)
        expected = probabilities(with_temperature(setting(table)[0], temperature), trie, vocabulary, repeated())
        for ids, num_samples in ((repeated(), 1), (repeated()[:50], 80)):
            beams = tree_sample(
                model, ids, None, trie, vocabulary, num_samples, True, temperature, generator=seeded(num_samples)
            )
            assert_frequent([sid for row in filled(beams) for sid, _ in row], expected)


def test_without_replacement_the_order_is_that_of_successive_draws(sid_table, ragged_table):
    """The first draw has the model's distribution; the second, given the first, what is left of it."""
    for table in (sid_table, ragged_table):
        model, trie, vocabulary = setting(table)
        expected = probabilities(model, trie, vocabulary, repeated())
        rows = [
            [sid for sid, _ in row]
            for row in filled(tree_sample(model, repeated(), None, trie, vocabulary, 3, generator=seeded()))
        ]
        assert_frequent([row[0] for row in rows], expected)
        first = max(expected, key=expected.get)
        rest = {sid: p / (1 - expected[first]) for sid, p in expected.items() if sid != first}
        seconds = [row[1] for row in rows if row[0] == first]
        assert len(seconds) > 500
        assert_frequent(seconds, rest)


@MODES
def test_filtered_draws_are_renormalised(llm, trie, vocabulary, replacement):
    allow = np.array([0, 2, 5, 9, 10])
    permitted = np.isin(np.arange(trie.num_leaves), trie.owners.entries(allow)[1])
    leaf_filter = LeafFilter(trie, allow=[allow] * NUM_ROWS)
    beams = tree_sample(
        llm, repeated(), None, trie, vocabulary, 1, replacement, generator=seeded(), leaf_filter=leaf_filter
    )
    expected = probabilities(llm, trie, vocabulary, repeated(), permitted)
    assert_frequent([row[0][0] for row in filled(beams)], expected)


# What is drawn


@pytest.mark.parametrize("extra", [0, 5])
def test_as_many_draws_as_sids_give_every_sid_once(sid_table, ragged_table, extra):
    for table in (sid_table, ragged_table):
        model, trie, vocabulary = setting(table)
        num_samples = trie.num_leaves + extra
        drawn = tree_sample(model, *prompts(), trie, vocabulary, num_samples, generator=seeded())
        expected = brute_force(model, *prompts(), trie, vocabulary, "children")
        assert_same([sorted(row) for row in filled(drawn)], [sorted(row) for row in expected])
        unfilled = drawn.leaves < 0
        assert not unfilled[:, : trie.num_leaves].any() and unfilled[:, trie.num_leaves :].all()


@MODES
def test_fewer_legal_sids_fill_fewer_draws_and_none_fills_none(llm, trie, vocabulary, replacement):
    leaf_filter = LeafFilter(trie, allow=[[0, 4, 5], None, []])  # items 4 and 5 share a SID
    drawn = tree_sample(llm, *prompts(), trie, vocabulary, 5, replacement, generator=seeded(), leaf_filter=leaf_filter)
    found = [[sid for sid, _ in row] for row in filled(drawn)]
    assert set(found[0]) <= {(0, 0, 0), (1, 0, 0)}
    assert [len(row) for row in found] == ([5, 5, 0] if replacement else [2, 5, 0])
    unfilled = drawn.leaves < 0
    assert drawn.scores[unfilled].isneginf().all() and not drawn.scores[~unfilled].isneginf().any()
    assert drawn.codes[unfilled].eq(EMPTY).all()


@MODES
@settings(max_examples=20)
@given(st.data(), st.integers(1, 9), st.integers(0, 99))
def test_every_draw_is_permitted(replacement, data, num_samples, seed):
    table = data.draw(tables(max_items=8))
    model, trie, vocabulary = setting(table)
    ids, mask = prompts((4, 2))
    exclude, allow = draw_filter(data, table.num_items)
    drawn = tree_sample(
        model, ids, mask, trie, vocabulary, num_samples, replacement, generator=seeded(seed),
        leaf_filter=LeafFilter(trie, exclude, allow),
    )  # fmt: skip
    assert trie.codes_of(drawn.leaves).equal(drawn.codes)
    for leaves, barred, wanted in zip(drawn.leaves.tolist(), exclude, allow, strict=True):
        items = set(range(table.num_items) if wanted is None else wanted) - set(barred)
        legal = {rank for rank in range(trie.num_leaves) if set(trie.items(rank).tolist()) & items}
        found = [leaf for leaf in leaves if leaf >= 0]
        assert set(found) <= legal
        if replacement:
            assert len(found) == (num_samples if legal else 0)
        else:
            assert len(set(found)) == len(found) == min(num_samples, len(legal))


@MODES
def test_the_same_seed_draws_the_same(llm, trie, vocabulary, replacement):
    def draw(seed):
        return tree_sample(llm, *prompts(), trie, vocabulary, 6, replacement, generator=seeded(seed))

    assert draw(1).leaves.equal(draw(1).leaves) and draw(1).scores.equal(draw(1).scores)
    assert not draw(1).leaves.equal(draw(2).leaves)


@MODES
def test_a_shared_prefix_equals_the_prefix_in_each_prompt(llm, trie, vocabulary, replacement):
    ids, _ = prompts((7, 7))
    whole, shared = (
        filled(tree_sample(llm, part, None, trie, vocabulary, 4, replacement, generator=seeded(), prefix_ids=prefix))
        for part, prefix in ((ids[:1], None), (ids[:1, 3:], ids[0, :3]))
    )
    assert_same(shared, whole)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0; at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be positive"),
        ({"temperature": float("nan")}, "temperature is nan; it must be positive"),
        ({"prefix_ids": torch.full((119,), 5)}, "Prompt and SID take 129 tokens but the model attends over 128"),
    ],
)
def test_impossible_draws_are_refused(llm, trie, vocabulary, options, message):
    with pytest.raises(ValueError, match=message):
        tree_sample(llm, *prompts(), trie, vocabulary, **{"num_samples": 2, **options})


def test_a_prompt_that_ends_inside_a_sid_is_refused(llm, trie, vocabulary):
    ids = torch.tensor([[9, 9], [9, vocabulary.starts[0]]])
    with pytest.raises(ValueError, match="The prompt of row 1 ends inside a SID"):
        tree_sample(llm, ids, None, trie, vocabulary, 2)


def test_a_filter_of_another_trie_is_refused(llm, trie, sid_table, vocabulary):
    with pytest.raises(ValueError, match="The filter is of another trie"):
        tree_sample(llm, *prompts(), trie, vocabulary, 2, leaf_filter=LeafFilter(SidTrie(sid_table), [[0]] * 3))
