"""The two alignment losses by hand, with the sign under which they draw together, and the adapters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.configs import AlternateConfig
from llmrec.training.alternate.alignment import (
    Adapters,
    Vectors,
    losses_of,
    preference_semantic_loss,
    sequence_item_loss,
)
from llmrec.training.alternate.pools import Pools
from tests.support.alternated import SMALL
from tests.tokenizers.test_etegrec import by_hand

DIVERGENCES = ("symmetric_kl", "jensen_shannon")
logits = st.lists(st.lists(st.floats(-20, 0), min_size=3, max_size=3), min_size=2, max_size=2).map(torch.tensor)
property_test = settings(derandomize=True, max_examples=40, deadline=None)


def log(*shares: float) -> torch.Tensor:
    return torch.tensor([shares]).log()


def config(**options) -> AlternateConfig:
    return AlternateConfig(out="o", catalog="c", model="m", sid="s", views="v", **{**SMALL, **options})


def test_symmetric_kl_by_hand():
    """Both directions, summed over the levels: KL(p||q) + KL(q||p) = sum (p - q) log(p / q)."""
    items, sequences = [log(0.5, 0.5), log(0.8, 0.2)], [log(0.25, 0.75), log(0.2, 0.8)]
    first = 0.25 * math.log(2) - 0.25 * math.log(0.5 / 0.75)
    second = 0.6 * math.log(4) - 0.6 * math.log(1 / 4)
    assert sequence_item_loss(items, sequences, "symmetric_kl").item() == pytest.approx(first + second)


def test_it_is_the_mean_over_targets():
    items, sequences = torch.cat([log(0.5, 0.5), log(0.8, 0.2)]), torch.cat([log(0.25, 0.75), log(0.8, 0.2)])
    alone = sequence_item_loss([items[:1]], [sequences[:1]], "symmetric_kl")
    assert sequence_item_loss([items], [sequences], "symmetric_kl").item() == pytest.approx(alone.item() / 2)


def test_jensen_shannon_by_hand():
    """Of (1, 0) and (0, 1), as nearly as softmax gets: log 2, its bound."""
    far = sequence_item_loss([torch.tensor([[0.0, -90.0]])], [torch.tensor([[-90.0, 0.0]])], "jensen_shannon")
    assert far.item() == pytest.approx(math.log(2))
    middle = torch.tensor([0.375, 0.625])
    kl = [float((p * (p / middle).log()).sum()) for p in (torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))]
    assert sequence_item_loss([log(0.5, 0.5)], [log(0.25, 0.75)], "jensen_shannon").item() == pytest.approx(
        sum(kl) / 2, rel=1e-5
    )


@property_test
@given(logits, logits, st.sampled_from(DIVERGENCES))
def test_divergences_are_symmetric_positive_and_zero_where_both_agree(p, q, divergence):
    loss = sequence_item_loss([p], [q], divergence).item()
    assert loss >= -1e-6 and loss == pytest.approx(sequence_item_loss([q], [p], divergence).item(), abs=1e-5)
    assert sequence_item_loss([p], [p + 3], divergence).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_falling_draws_a_history_to_its_targets_code(divergence):
    """The sign: a step against the gradient brings the history's vector nearer to the code of the item."""
    tokenizer = by_hand(torch.tensor([[3.5, 1.0]])).requires_grad_(False)
    assigned = tokenizer.assign(tokenizer.points)
    history = torch.tensor([[1.9, 0.1]], requires_grad=True)
    sequence_item_loss(assigned.logits, tokenizer.logits(history), divergence).backward()
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


def test_two_rows_of_one_target_are_false_negatives():
    """Why targets must be distinct: a perfect match of twins costs what it does not cost one of them."""
    one = torch.eye(3)
    assert preference_semantic_loss(one, one, 0.07).item() < 1e-4
    twins = one[[0, 0, 1]]
    assert preference_semantic_loss(twins, twins, 0.07).item() > 0.9 * 2 * 2 / 3 * math.log(2)


def test_a_weight_of_zero_turns_a_loss_off_and_without_histories_the_tokenizers_own_is_left():
    tokenizer = by_hand(torch.tensor([[3.0, 2.0], [0.0, -1.0]]))
    vectors = Vectors(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    targets = torch.tensor([0, 1])
    both = losses_of(config(), tokenizer, targets, vectors)
    assert all(loss > 0 for loss in both)
    assert losses_of(config(sia_weight=0), tokenizer, targets, vectors)[1:] == (0, both.psa)
    assert losses_of(config(psa_weight=0), tokenizer, targets, vectors)[1:] == (both.sia, 0)
    assert losses_of(config(), tokenizer, targets, None) == (both.own, 0, 0)
    assert losses_of(config(), tokenizer, targets[:0], None) == (0, 0, 0)


def test_adapters_read_what_belongs_to_them_in_float32():
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
