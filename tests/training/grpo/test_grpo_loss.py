"""The GRPO loss and its gradients, held against the definitions: by hand, code by code, and by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.sid.table import SidTable
from llmrec.training.grpo.trainer import code_shares, grpo_loss
from tests.conftest import CODES
from tests.support.extended import extended, fine_tune
from tests.support.reinforced import scored

UNEVEN = CODES.copy()
UNEVEN[[3, 6], 2] = -1  # two SIDs of two codes among those of three
BETA = 0.5


@pytest.fixture(scope="module")
def tuned_uneven(toy, tmp_path_factory):
    """Checkpoint of the sft stage whose SIDs have two or three codes."""
    root = tmp_path_factory.mktemp("uneven")
    base = extended(root, SidTable([f"item-{row}" for row in range(12)], UNEVEN, level_sizes=[4, 4, 4]))
    fine_tune(root / "sft", toy[0], base, train="full", max_steps=10, learning_rate=5e-3, batch_size=24, max_history=10)
    return root / "sft"


def log_probs_of_a_sid(trainer, prompt: list[int], sid: list[int]) -> list[torch.Tensor]:
    """Log-probability of each code among the codes that lead to an item, by an ordinary forward pass."""
    starts = trainer.sampler.vocabulary.starts
    every = [[code for code in codes if code >= 0] for codes in trainer.sampler.ranker.table.all_codes.tolist()]
    logits = trainer.policy(input_ids=torch.tensor([[*prompt, *sid]])).logits[0, len(prompt) - 1 :]
    codes, found = [token - start for token, start in zip(sid, starts, strict=False)], []
    for level, code in enumerate(codes):
        legal = sorted({other[level] for other in every if other[:level] == codes[:level]})
        distribution = logits[level, [starts[level] + each for each in legal]].log_softmax(dim=0)
        found.append(distribution[legal.index(code)])
    return found


def loss_by_hand(trainer, groups, normalisation: str) -> torch.Tensor:
    """Sum over all codes of weight (-ratio A + beta ratio (e^d - d - 1)), d = log reference - log policy."""
    total = torch.zeros(())
    for group in groups:
        prompt = trainer.sampler.batch([group])["input_ids"][0].tolist()
        for tokens, advantage, weight in zip(group.completions.tolist(), group.advantages, group.weights, strict=True):
            sid = [token for token in tokens if token >= 0]
            policy = log_probs_of_a_sid(trainer, prompt, sid)
            with torch.no_grad(), trainer.policy.disable_adapter():
                reference = log_probs_of_a_sid(trainer, prompt, sid)
            divisor = len(sid) if normalisation == "grpo" else 3
            for new, of_reference in zip(policy, reference, strict=True):
                ratio, difference = (new - new.detach()).exp(), of_reference - new
                kl = difference.exp() - difference - 1
                total = total + weight * (-ratio * advantage + BETA * ratio * kl) / divisor
    return total / sum(len(group.completions) for group in groups)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_loss_and_gradients_by_hand(trainer_of, tuned_uneven, loss):
    """Two routes: the trainer's, and a forward pass per roll-out with the sum written out; weights and lengths vary."""
    trainer = trainer_of(tuned_uneven, loss=loss, rollouts="distinct", num_generations=9, beta=BETA)
    parameters = [p for p in trainer.policy.parameters() if p.requires_grad]
    with scored(trainer):
        groups = trainer.roll_out(range(6))
        ours = trainer.compute_loss(trainer.policy, trainer.sampler.batch(groups))
        gradients = torch.autograd.grad(ours, parameters)
    assert {len(sid[sid >= 0]) for group in groups for sid in group.completions} == {2, 3}
    assert len({float(weight) for group in groups for weight in group.weights}) > 3
    expected = loss_by_hand(trainer, groups, loss)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert trainer.averages.take()["kl"] > 1e-3
    for gradient, by_hand in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(gradient, by_hand, rtol=1e-3, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-2


def test_the_gradient_is_that_of_the_expected_reward(trainer_of, tuned):
    """Where all SIDs are drawn nothing is left to chance: weights, baseline and loss together are exact."""
    trainer = trainer_of(tuned, loss="dr_grpo", rollouts="distinct", num_generations=11, rewards=["prefix"], beta=0.0)
    parameters, sampler = [p for p in trainer.policy.parameters() if p.requires_grad], trainer.sampler
    sids, expected = np.unique(sampler.ranker.table.all_codes, axis=0), 0
    with scored(trainer):
        groups = trainer.roll_out(range(6))
        found = torch.autograd.grad(trainer.compute_loss(trainer.policy, sampler.batch(groups)), parameters)
        for group in groups:
            batch = sampler.batch([group])
            place = next(s for s in sampler.sequences if s[:-1].tolist() == group.history.tolist())
            target_codes = sampler.ranker.table.codes([int(place[-1])])[0]
            rewards = torch.tensor((sids == target_codes).cumprod(axis=1).mean(axis=1), dtype=torch.float32)
            tokens = torch.from_numpy(sampler.vocabulary.token_ids(sids)).unsqueeze(0)
            scores = trainer.policy(input_ids=batch["input_ids"], completions=tokens)
            log_probs = scores.log_probs.sum(dim=2)[0]
            expected = expected - (log_probs.exp() * rewards).sum() / 6 / 3  # Dr. GRPO divides by the longest SID
    exact = torch.autograd.grad(expected, parameters)
    assert max(gradient.abs().max() for gradient in exact) > 1e-3
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_values_by_hand():
    """One roll-out of two codes, advantage 2, log-probabilities -1 and -2 against -1.5 and -2 of the reference."""
    log_probs = torch.tensor([[[-1.0, -2.0]]], requires_grad=True)
    reference, shares = torch.tensor([[[-1.5, -2.0]]]), torch.tensor([[[0.5, 0.5]]])
    loss, kl = grpo_loss(log_probs, reference, torch.tensor([[2.0]]), shares, beta=0.1)
    k3 = np.exp(-0.5) + 0.5 - 1
    assert kl.tolist() == [[[pytest.approx(k3), 0]]]
    assert loss.item() == pytest.approx(-2 + 0.1 * 0.5 * k3)
    loss.backward()
    # -A + beta (k3 + 1 - e^d), the last two being the gradients of the ratio and of k3
    slope = -2 + 0.1 * (k3 + 1 - np.exp(-0.5))
    assert log_probs.grad[0, 0].tolist() == pytest.approx([0.5 * slope, -1.0])


def test_the_ratio_makes_the_gradient_of_the_kl_term_that_of_policy_against_reference():
    """All five codes, weighted by their probabilities: an exact expectation. Without the ratio its gradient would be
    that of the divergence of the reference from the policy."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(dim=0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    policy = logits.log_softmax(dim=0)
    each, shares = (1, 5, 1), policy.exp().detach()
    loss, _ = grpo_loss(policy.view(each), reference.view(each), torch.zeros(1, 5), shares.view(each), beta=1.0)
    without_ratio = (shares * ((reference - policy).exp() - (reference - policy) - 1)).sum()
    of_policy = (policy.exp() * (policy - reference)).sum()
    of_reference = (reference.exp() * (reference - policy)).sum()
    values = (loss, of_policy, without_ratio, of_reference)
    ours, wanted, plain, other = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in values)
    assert loss.item() == pytest.approx(of_policy.item()) == without_ratio.item()
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(plain, other)
    assert (ours - plain).abs().max() > 0.05


def test_without_a_reference_there_is_no_kl():
    log_probs = torch.tensor([[[-1.0, -2.0]]], requires_grad=True)
    loss, kl = grpo_loss(log_probs, None, torch.tensor([[2.0]]), torch.tensor([[[0.5, 0.5]]]), beta=0.0)
    assert kl is None and loss.item() == -2


def test_a_short_sid_weighs_as_much_as_a_long_one():
    """`grpo` averages over the codes of a roll-out before it averages over roll-outs; `dr_grpo` divides by L."""
    weights, is_code = torch.tensor([[2.0, 1.0]]), torch.tensor([[[True, True, True], [True, False, False]]])
    assert (code_shares(weights, is_code, "grpo") * 6).tolist() == [[[2, 2, 2], [3, 0, 0]]]
    assert (code_shares(weights, is_code, "dr_grpo") * 6).tolist() == [[[2, 2, 2], [1, 0, 0]]]
