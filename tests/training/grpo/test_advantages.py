"""Advantages by hand, and draws without replacement against exact gradients of a 20-item catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decoding.sampling import Draws, tree_sample
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import SidTable
from llmrec.training.grpo.advantages import distinct_advantages, group_advantages, importance_weights, is_idle
from llmrec.training.grpo.rollouts import always_taken, weighted
from tests.conftest import tiny_llm
from tests.support.decoding import prompts, vocabulary_of

NUM_ITEMS, NUM_DRAWN, NUM_GROUPS = 20, 6, 20_000
TOLERANCE = 5  # standard errors; one fair estimate in 1.7 million is further away, and about 100 are compared


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_one_hit_among_sixteen():
    """By the rule reward the mean is 1/16 and the unbiased deviation 1/4, to which 1e-4 is added."""
    rewards = torch.zeros(1, 16)
    rewards[0, 5] = 1
    expected = torch.full((1, 16), -0.2499)
    expected[0, 5] = 3.7485
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=0, atol=5e-5)


def test_without_division_the_mean_is_taken_off():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 4.0, 0.0]])
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 2.0, -2.0]])
    torch.testing.assert_close(group_advantages(rewards, divide=False), expected)


@given(st.floats(-5, 5), st.integers(2, 9), st.booleans())
def test_a_group_of_equal_rewards_is_idle_and_has_no_advantage(value, size, divide):
    rewards = torch.full((1, size), value, dtype=torch.float64)
    assert is_idle(rewards).tolist() == [True]
    assert group_advantages(rewards, divide).abs().max() < 1e-9
    weights = torch.rand(1, size, dtype=torch.float64)
    assert not distinct_advantages(rewards, weights.log(), weights).any()


def test_equal_weights_of_unlikely_sids_give_the_advantages_of_independent_draws():
    """With weights 1 / G, and probabilities so small that the correction of the baseline is r / G for all."""
    rewards = torch.zeros(1, 16, dtype=torch.float64)
    rewards[0, 3] = 1
    weights = torch.full_like(rewards, 1 / 16)
    found = distinct_advantages(rewards, torch.full_like(rewards, -60.0), weights)
    hit = (1 + 1 / 16 - 1 / 16) / (0.25 + 1e-4)  # r (1 - p + w) - b
    expected = torch.full_like(rewards, -1 / 16 / (0.25 + 1e-4))
    expected[0, 3] = hit
    torch.testing.assert_close(found, expected)


def importance_by_hand(p, threshold):
    return p / (1 - np.exp(-np.exp(np.log(p) - threshold)))


def test_importance_weights_by_hand():
    p, threshold = np.array([[0.5, 0.1], [0.9, 1e-9]]), np.array([-0.3, 0.4])
    found = importance_weights(torch.tensor(p).log(), torch.tensor(threshold))
    assert found[0].tolist() == pytest.approx(importance_by_hand(p[0], -0.3).tolist())
    assert found[1, 0].item() == pytest.approx(importance_by_hand(0.9, 0.4))
    assert found[1, 1].item() == pytest.approx(np.exp(0.4))  # a rare SID has the threshold's weight, to rounding


def test_where_every_sid_is_drawn_weights_are_probabilities():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    weights = importance_weights(p.log(), torch.tensor([-torch.inf], dtype=torch.float64))
    torch.testing.assert_close(weights, p)


@pytest.fixture(scope="module")
def drawn():
    """Probabilities of 20 items by a random model, and NUM_GROUPS draws of NUM_DRAWN + 1 of them."""
    rng = np.random.default_rng(0)
    codes = np.array(np.unravel_index(rng.choice(64, NUM_ITEMS, replace=False), (4, 4, 4))).T
    table = SidTable([f"item-{row}" for row in range(NUM_ITEMS)], codes, level_sizes=[4, 4, 4])
    (vocabulary, size), trie = vocabulary_of(table), SidTrie(table)
    model, ids = tiny_llm(size), prompts((4,), 0)[0]
    every = tree_sample(model, ids, None, trie, vocabulary, NUM_ITEMS, generator=seeded())
    p = torch.zeros(NUM_ITEMS, dtype=torch.float64)
    p[every.leaves[0]] = every.scores[0].double().exp()
    draws = tree_sample(model, ids.expand(NUM_GROUPS, -1), None, trie, vocabulary, NUM_DRAWN + 1, generator=seeded(1))
    return p / p.sum(), draws


def estimates(leaves, values):
    """(U, 20) values of each group at its items, 0 elsewhere."""
    return torch.zeros(len(leaves), NUM_ITEMS, dtype=torch.float64).scatter(1, leaves, values)


def assert_unbiased(samples, expected):
    """The mean of (U, x) samples is as expected within TOLERANCE standard errors, which are small enough to tell."""
    errors = samples.std(dim=0) / len(samples) ** 0.5
    assert ((samples.mean(dim=0) - expected).abs() <= TOLERANCE * errors + 1e-6).all()
    assert errors.max() < 0.01


def test_the_catalogue_is_worth_testing(drawn):
    p = drawn[0]
    assert p.max() > 0.1 and p.min() < 0.01  # so that unweighted draws would be far off


def test_weights_are_unbiased_and_uncorrelated(drawn):
    p, draws = drawn
    found = weighted(draws, NUM_DRAWN)
    leaves, weights = found.leaves, found.weights
    of_items = estimates(leaves, weights)
    assert_unbiased(of_items, p)
    assert_unbiased(weights.sum(dim=1, keepdim=True), torch.ones(1))
    pairs = (of_items.unsqueeze(2) * of_items.unsqueeze(1)).flatten(1)  # E w_i w_j = p_i p_j for i != j
    off_diagonal = ~torch.eye(NUM_ITEMS, dtype=torch.bool).flatten()
    assert_unbiased(pairs[:, off_diagonal], torch.outer(p, p).flatten()[off_diagonal])


def test_unweighted_draws_would_be_biased(drawn):
    """The test above can fail: shares of the groups are far from the probabilities."""
    p, draws = drawn
    leaves = weighted(draws, NUM_DRAWN).leaves
    shares = estimates(leaves, torch.full((NUM_GROUPS, NUM_DRAWN), 1 / NUM_DRAWN, dtype=torch.float64))
    assert (shares.mean(dim=0) - p).abs().max() > 0.05


def test_weights_need_the_roots_key_to_be_drawn(drawn):
    """With it fixed, as the order of the draws would allow, the largest key of every group would be the same."""
    p, draws = drawn
    one = weighted(draws, 1)
    assert_unbiased(estimates(one.leaves, one.weights), p)
    keys = draws.keys.double()
    # exp(-key) of a SID is exp(-key of the root) and something that the root's key does not change.
    fixed = -((-keys).exp() - (-keys[:, :1]).exp() + 1).log()
    biased = weighted(Draws(draws.codes, draws.scores, draws.leaves, fixed), 1)
    assert (estimates(biased.leaves, biased.weights).mean(dim=0) - p).abs().max() > 0.05


REWARDS = {"one hit": torch.eye(NUM_ITEMS, dtype=torch.float64)[7],
           "graded": torch.linspace(-1, 2, NUM_ITEMS, dtype=torch.float64)}  # fmt: skip


def gradient(of_items, p):
    """sum_i x_i grad log p_i over logits of the items: x - p sum x."""
    return of_items - p * of_items.sum(dim=1, keepdim=True)


def gradients(drawn, p, rewards):
    """(U, 20) estimates of groups."""
    advantages = distinct_advantages(rewards[drawn.leaves], drawn.log_probs, drawn.weights, divide=False)
    return gradient(estimates(drawn.leaves, drawn.weights * advantages), p)


@pytest.mark.parametrize("name", REWARDS)
def test_the_gradient_estimate_is_unbiased(drawn, name):
    p, draws = drawn
    exact = p * (REWARDS[name] - p @ REWARDS[name])
    assert_unbiased(gradients(weighted(draws, NUM_DRAWN), p, REWARDS[name]), exact)


@pytest.mark.parametrize("rank", [0, 9, NUM_ITEMS - 1])
def test_an_injected_target_leaves_the_estimates_unbiased(drawn, rank):
    """Whether it is likely or rare, and for the rule reward the estimate is then exact but for the others' part."""
    p, draws = drawn
    item = p.argsort(descending=True)[rank]
    target = item.expand(NUM_GROUPS, 1)
    taken = always_taken(draws, NUM_DRAWN, target, p[target].log())
    assert taken.leaves.shape == (NUM_GROUPS, NUM_DRAWN) and (taken.leaves[:, -1] == item).all()
    assert all(len(set(row)) == NUM_DRAWN for row in taken.leaves[:500].tolist())
    assert taken.is_injected.equal(~(draws.leaves[:, :NUM_DRAWN] == item).any(dim=1))
    assert_unbiased(estimates(taken.leaves, taken.weights), p)
    for rewards in (torch.eye(NUM_ITEMS, dtype=torch.float64)[item], REWARDS["graded"]):
        assert_unbiased(gradients(taken, p, rewards), p * (rewards - p @ rewards))


def test_the_baseline_lowers_the_variance(drawn):
    p, draws = drawn
    found, rewards = weighted(draws, NUM_DRAWN), 5 + REWARDS["graded"]
    without = gradient(estimates(found.leaves, found.weights * rewards[found.leaves]), p)
    assert gradients(found, p, rewards).var(dim=0).sum() < 0.5 * without.var(dim=0).sum()
