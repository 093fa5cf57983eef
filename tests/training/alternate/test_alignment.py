"""The two alignment losses by hand, the sign under which they draw together, and the adapters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.training.alternate.alignment import (
    Adapters,
    Alignment,
    HistoryVectors,
    preference_semantic_loss,
    sequence_item_loss,
)
from llmrec.training.alternate.pools import Pools
from tests.tokenizers.test_etegrec import by_hand

logits = st.lists(st.lists(st.floats(-20, 0), min_size=3, max_size=3), min_size=2, max_size=2).map(torch.tensor)
property_test = settings(derandomize=True, max_examples=40, deadline=None)


def log(*shares: float) -> torch.Tensor:
    return torch.tensor([shares]).log()


def test_symmetric_kl_by_hand():
    """Both directions, summed over the levels: KL(p||q) + KL(q||p) = sum (p - q) log(p / q)."""
    items, sequences = [log(0.5, 0.5), log(0.8, 0.2)], [log(0.25, 0.75), log(0.2, 0.8)]
    first = 0.25 * math.log(2) - 0.25 * math.log(0.5 / 0.75)
    second = 0.6 * math.log(4) - 0.6 * math.log(1 / 4)
    assert sequence_item_loss(items, sequences).item() == pytest.approx(first + second)


def test_the_sequence_item_loss_is_the_mean_over_targets():
    items, sequences = torch.cat([log(0.5, 0.5), log(0.8, 0.2)]), torch.cat([log(0.25, 0.75), log(0.8, 0.2)])
    alone = sequence_item_loss([items[:1]], [sequences[:1]])
    assert sequence_item_loss([items], [sequences]).item() == pytest.approx(alone.item() / 2)


@property_test
@given(logits, logits)
def test_the_divergence_is_symmetric_positive_and_zero_where_both_agree(p, q):
    loss = sequence_item_loss([p], [q]).item()
    assert loss >= -1e-6 and loss == pytest.approx(sequence_item_loss([q], [p]).item(), abs=1e-5)
    assert sequence_item_loss([p], [p + 3]).item() == pytest.approx(0, abs=1e-6)


def test_a_gradient_step_draws_a_history_to_the_code_of_its_target():
    tokenizer = by_hand(torch.tensor([[3.5, 1.0]])).requires_grad_(False)
    assigned = tokenizer.assign(tokenizer.points)
    history = torch.tensor([[1.9, 0.1]], requires_grad=True)
    sequence_item_loss(assigned.logits, tokenizer.logits(history)).backward()
    moved = (history - 0.01 * history.grad).detach()
    code = torch.tensor([4.0, 0.0])
    assert (moved - code).norm() < (history - code).norm()


def test_preference_semantic_by_hand():
    """Cosines 1 and 0 for the first, .6 and .8 for the second preference, at temperature .5."""
    preference = torch.tensor([[2.0, 0.0], [0.6, 0.8]])
    rebuilt = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    cosines = [[1.0, 0.0], [0.6, 0.8]]
    soft = [[math.exp(c / 0.5) for c in row] for row in cosines]
    finds = sum(-math.log(soft[i][i] / sum(soft[i])) for i in range(2)) / 2
    found = sum(-math.log(soft[i][i] / (soft[0][i] + soft[1][i])) for i in range(2)) / 2
    assert preference_semantic_loss(preference, rebuilt, 0.5).item() == pytest.approx(finds + found, rel=1e-5)


def test_a_target_that_occurs_twice_is_a_false_negative():
    """Targets must be distinct: a perfect match has no loss, but it has one if a target occurs twice."""
    one = torch.eye(3)
    assert preference_semantic_loss(one, one, 0.07).item() < 1e-4
    twins = one[[0, 0, 1]]
    assert preference_semantic_loss(twins, twins, 0.07).item() > 0.9 * 2 * 2 / 3 * math.log(2)


def test_a_weight_of_zero_or_no_history_turns_a_loss_off():
    tokenizer = by_hand(torch.tensor([[3.0, 2.0], [0.0, -1.0]]))
    vectors = HistoryVectors(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    targets = torch.tensor([0, 1])
    alignment = Alignment(tokenizer, sia_weight=0.1, psa_weight=0.2)
    both = alignment.losses(targets, vectors)
    assert all(loss > 0 for loss in both)
    assert alignment.weighted(both).item() == pytest.approx((0.1 * both.sia + 0.2 * both.psa).item())
    assert Alignment(tokenizer, 0, 0.2).losses(targets, vectors)[1:] == (0, both.psa)
    assert Alignment(tokenizer, 0.1, 0).losses(targets, vectors)[1:] == (both.sia, 0)
    assert alignment.losses(targets, None) == (both.own, 0, 0)
    assert alignment.losses(targets[:0], None) == (0, 0, 0)


def test_adapters_map_pooled_states_in_float32():
    state = torch.get_rng_state()
    one, again, other = (Adapters(8, 4, 6, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    states = torch.randn(1, 6, 8)
    pools = Pools(torch.tensor([[1, 3, 5]]), torch.tensor([2]), torch.tensor([7]))
    with torch.autocast("cpu", torch.bfloat16):
        vectors = one(states.bfloat16(), pools)
    assert vectors.sequence.dtype == vectors.preference.dtype == torch.float32
    read = states.bfloat16().float()[0]
    torch.testing.assert_close(vectors.sequence, one.sequence((read[1] + read[3])[None] / 2))
    torch.testing.assert_close(vectors.preference, one.preference(read[3][None]))
    assert torch.equal(one(states, pools).sequence, again(states, pools).sequence)
    assert not torch.equal(one(states, pools).sequence, other(states, pools).sequence)
