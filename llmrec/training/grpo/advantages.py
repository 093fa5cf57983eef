"""Advantages: how much better a roll-out is than the others of its group.

GRPO (arXiv:2402.03300) takes the mean of the group from each reward and divides by its standard deviation; Dr. GRPO
(arXiv:2503.20783) does not divide. Both are for independent draws.

Draws without replacement are not independent: a likely SID comes up once, not in proportion to its probability. The
correction is derived here, for a policy p over SIDs, a reward r, and S, the G SIDs with the largest keys
K_i = log p_i + Gumbel noise. The threshold k is the next largest key (`llmrec.decoding.sampling`).

    Given the keys of all others, i is in S if K_i exceeds h, the G-th largest of them; the threshold is then h, and
    P(K_i > h) = q_i(h) = 1 - exp(-exp(log p_i - h)). So with the weight w_i = [i in S] p_i / q_i(k), E w_i = p_i, and
    E sum_i w_i f_i = sum_i p_i f_i for any f: an unbiased estimate of the expectation under independent draws.

    Two SIDs i, j are both in S if both keys exceed the (G - 1)-th largest of the rest, which is then the threshold;
    K_i and K_j are independent, so E w_i w_j = p_i p_j.

    The gradient of the expected reward is sum_i p_i r_i g_i with g_i = grad log p_i, which sum_i w_i r_i g_i estimates.
    A baseline b = sum_j w_j r_j lowers the variance, but knows r_i itself:
    E sum_i w_i b g_i = sum_{i != j} p_i p_j r_j g_i + sum_i E w_i^2 r_i g_i = sum_i (E w_i^2 - p_i^2) r_i g_i, because
    sum_i p_i g_i = 0. Adding (w_i - p_i) r_i to r_i corrects exactly this, so that

        sum_i w_i A_i g_i   with   A_i = r_i (1 - p_i + w_i) - b

    is unbiased. `tests/training/grpo/test_advantages.py` compares both to the exact values of a catalogue.

    A SID that is always taken, such as an injected target, has the weight p_i; the others keep theirs, with G and the
    threshold counted among themselves. Nothing above changes.

The division by the deviation of the group is biased, as in GRPO itself, because the deviation depends on the draws.

Shapes: U groups, G roll-outs of a group.

Source: Kool et al., Stochastic Beams and Where to Find Them (arXiv:1903.06059), for the weights, which are those of
Duffield et al.'s priority sampling (2007); Buy 4 REINFORCE Samples, Get a Baseline for Free! (2019) for the baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

STABILISER = 1e-4  # added to the deviation, as in TRL and MiniOneRec


def group_advantages(rewards_UG: Tensor, divide: bool = True) -> Tensor:
    """Advantages of independent draws, or of beams that are treated as such.

    Args:
        rewards_UG: (U, G) rewards.
        divide: Divide by the standard deviation of the group (unbiased, over G - 1).

    Returns:
        (U, G) advantages; 0 in groups of equal rewards.
    """
    centred = rewards_UG - rewards_UG.mean(dim=1, keepdim=True)
    return centred / (rewards_UG.std(dim=1, keepdim=True) + STABILISER) if divide else centred


def importance_weights(log_probs_UG: Tensor, thresholds_U: Tensor) -> Tensor:
    """p / q(threshold) of SIDs drawn without replacement.

    Args:
        log_probs_UG: (U, G) log-probabilities of the SIDs.
        thresholds_U: (U,) largest key that was not drawn; -inf where all SIDs were drawn.

    Returns:
        (U, G) weights, whose sum over a group has expectation 1.
    """
    included = -torch.expm1(-(log_probs_UG - thresholds_U.unsqueeze(1)).exp())
    return log_probs_UG.exp() / included


def distinct_advantages(rewards_UG: Tensor, log_probs_UG: Tensor, weights_UG: Tensor, divide: bool = True) -> Tensor:
    """Advantages A of draws without replacement, to be multiplied by their weights.

    Args:
        rewards_UG: (U, G) rewards.
        log_probs_UG: (U, G) log-probabilities of the SIDs.
        weights_UG: (U, G) weights of `importance_weights`; the probability itself for a SID that is always taken.
        divide: Divide by the weighted standard deviation of the group, over G - 1 as in `group_advantages`.

    Returns:
        (U, G) advantages; with `divide`, 0 in groups of equal rewards, whose deviation says nothing.
    """
    baseline = (weights_UG * rewards_UG).sum(dim=1, keepdim=True)
    advantages = rewards_UG * (1 - log_probs_UG.exp() + weights_UG) - baseline
    if not divide:
        return advantages
    shares, count = weights_UG / weights_UG.sum(dim=1, keepdim=True), rewards_UG.shape[1]
    mean = (shares * rewards_UG).sum(dim=1, keepdim=True)
    variance = (shares * (rewards_UG - mean) ** 2).sum(dim=1, keepdim=True) * count / (count - 1)
    return torch.where(is_idle(rewards_UG).unsqueeze(1), 0.0, advantages / (variance.sqrt() + STABILISER))


def is_idle(rewards_UG: Tensor) -> Tensor:
    """(U,) bool, the groups in which all rewards are equal, so that there is nothing to learn from them."""
    return rewards_UG.amax(dim=1) == rewards_UG.amin(dim=1)
