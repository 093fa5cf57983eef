"""Pools of states: by hand, against a slow count, and without a state that has seen the target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.model.backbone import run_backbone
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import SidTable
from llmrec.training.alternate.pools import PoolingCollator, Pools, pool_states
from llmrec.training.alternate.trainer import keep_examples
from llmrec.training.sft.examples import HistoryCollator
from tests.conftest import CODES, tiny_llm

PREFIX, LEVELS = [4, 5], 3


@pytest.fixture
def collate(sid_table, vocabulary):
    return lambda **options: collator_of(sid_table, vocabulary, **options)


def collator_of(table, vocabulary, packing=True, unknown=()) -> PoolingCollator:
    known = ~np.isin(np.arange(12), unknown)
    return PoolingCollator(HistoryCollator(PREFIX, SidHistoryEncoder(table, vocabulary), 0, packing), known)


def example(*rows: int, context: int = 0) -> dict:
    return {"rows": list(rows), "num_context": context}


def batch_of(collator, *examples) -> tuple[dict, Pools]:
    batch = collator.batch(list(examples), with_pools=True)
    return batch, Pools(**batch.pop("pools"))


def test_packed_rows_by_hand(collate):
    """Two sequences packed into one row, the longer first: prompts of 2 tokens, items of 3."""
    batch, pools = batch_of(collate(), example(7, 8), example(1, 2, 3))
    assert batch["input_ids"].shape == (1, 64)
    # Example 1 (1, 2, 3) begins at token 0, example 0 (7, 8) at 11.
    assert pools.item_ends.tolist() == [[15, 18, 0], [4, 7, 10]]
    assert pools.targets.tolist() == [2, 3, 8], "1 and 7 have no history"
    assert pools.places.tolist() == [4, 5, 1]
    ends = batch["input_ids"].flatten()[pools.item_ends[1]]
    assert ends.tolist() == collate().histories.encoder.tokens_NL[[1, 2, 3], -1].tolist()


def test_padded_rows_by_hand(collate):
    _, pools = batch_of(collate(packing=False), example(7, 8), example(1, 2, 3))
    assert pools.item_ends.tolist() == [[4, 7, 0], [11 + 4, 11 + 7, 11 + 10]]


def test_a_target_that_occurs_twice_counts_with_its_longest_history(collate):
    _, pools = batch_of(collate(), example(0, 5), example(1, 2, 3, 5), example(4, 3, 5))
    assert pools.targets.tolist() == [2, 3, 5]
    width = pools.item_ends.shape[1]
    assert [divmod(place, width) for place in pools.places.tolist()] == [(1, 1), (1, 2), (1, 3)]


def test_context_unknown_items_and_empty_examples_are_no_targets(collate):
    _, pools = batch_of(collate(unknown=(3,)), example(1, 2, 3, 4, context=2), example(), example(9))
    assert pools.targets.tolist() == [4] and pools.places.tolist() == [3]
    _, pools = batch_of(collate(), example(), example(9))
    assert len(pools.targets) == 0


sequences = st.lists(st.lists(st.integers(0, 11), max_size=7), min_size=1, max_size=6).filter(any)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(sequences, st.booleans())
def test_pooled_states_are_those_of_the_items_before(rows, packing):
    from llmrec.sid.vocabulary import SidVocabulary
    from tests.conftest import word_tokenizer

    table = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    collator = collator_of(table, SidVocabulary.add_to(word_tokenizer(), table.level_sizes), packing)
    batch, pools = batch_of(collator, *(example(*each) for each in rows))
    states = torch.randn(*batch["input_ids"].shape, 5, generator=torch.Generator().manual_seed(0))
    means, last = pool_states(states, pools)
    flat = states.flatten(0, 1)
    longest = {}
    for s, sequence in enumerate(rows):
        for place, item in enumerate(sequence):
            if place and (item not in longest or place > longest[item][1]):
                longest[item] = (s, place)
    assert pools.targets.tolist() == sorted(longest)
    for u, item in enumerate(sorted(longest)):
        s, place = longest[item]
        before = flat[pools.item_ends[s, :place]]
        torch.testing.assert_close(means[u], before.mean(0))
        torch.testing.assert_close(last[u], before[-1])


@pytest.mark.parametrize("packing", [True, False])
def test_no_target_leaks_into_its_pools(collate, llm, packing):
    """Another target, and anything else after it, leave both vectors as they are; another history does not."""
    collator = collate(packing=packing)

    def vectors(*rows: int):
        batch, pools = batch_of(collator, example(*rows), example(9, 10))
        with torch.no_grad():
            inputs = {name: part for name, part in batch.items() if name != "labels"}
            states = run_backbone(llm, **inputs, use_cache=False).last_hidden_state
            pooled = pool_states(states, pools)
        return {place: pair for place, *pair in zip(pools.places.tolist(), *pooled, strict=True)}

    found, third = vectors(1, 2, 3, 6, 7), 2
    for other in ((1, 2, 8, 6, 7), (1, 2, 3, 11, 0), (1, 2, 8, 0, 11)):
        for mine, theirs in zip(found[third], vectors(*other)[third], strict=True):
            assert torch.equal(mine, theirs)
    for mine, theirs in zip(found[third], vectors(1, 8, 3, 6, 7)[third], strict=True):
        assert not torch.allclose(mine, theirs)


def test_the_state_of_the_last_history_token_predicts_the_first_code(collate):
    """The off-by-one check: the label after that position is the target's first token."""
    batch, pools = batch_of(collate(), example(1, 2, 3), example(7, 8))
    labels = batch["labels"].flatten()
    for place, target in zip(pools.places, pools.targets, strict=True):
        position = pools.item_ends.flatten()[place - 1]
        assert labels[position + 1] == collate().histories.encoder.tokens_NL[target, 0]


def test_a_batch_has_the_semantic_ids_of_the_moment(collate, sid_table, vocabulary):
    collator, drawn = collate(), keep_examples([example(1, 2), example(3)])
    before = collator.batch(drawn["examples"], with_pools=False)["input_ids"]
    turned = SidTable(sid_table.item_ids, CODES[::-1], level_sizes=[4, 4, 4])
    collator.histories.encoder = SidHistoryEncoder(turned, vocabulary)
    after = collator.batch(drawn["examples"], with_pools=False)["input_ids"]
    assert before.shape == after.shape and not torch.equal(before, after)


def test_packed_pools_are_those_of_padded_rows(collate, tokenizer):
    llm = tiny_llm(len(tokenizer))
    examples = [example(1, 2, 3), example(4, 5, 6, 7, 8), example(9, 10)]
    found = []
    for packing in (True, False):
        batch, pools = batch_of(collate(packing=packing), *examples)
        inputs = {name: part for name, part in batch.items() if name != "labels"}
        with torch.no_grad():
            states = run_backbone(llm, **inputs, use_cache=False).last_hidden_state
        found.append((pools.targets, *pool_states(states, pools)))
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded)
