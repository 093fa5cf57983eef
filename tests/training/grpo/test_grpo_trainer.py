"""What grpo trains: the policy, the losses by hand and by enumeration, groups, and what is relied on in TRL."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from trl import GRPOTrainer

from llmrec.stages import grpo as stage
from llmrec.training.grpo import trainer as grpo
from llmrec.training.grpo.rollout_batches import Rounds
from llmrec.training.grpo.trainer import SidGRPOTrainer, early_clipped
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from tests.support.extended import weights_of
from tests.support.reinforced import curve, reinforce

TRL = importlib.metadata.version("trl")


@pytest.fixture(scope="session")
def tuned_untied(toy, untied, tmp_path_factory):
    from tests.support.extended import fine_tune

    out = tmp_path_factory.mktemp("tuned_untied") / "sft"
    fine_tune(out, toy[0], untied, train="full", max_steps=5, learning_rate=5e-3, batch_size=24, max_history=10)
    return out


@pytest.mark.parametrize(
    ("checkpoint", "way"),
    [("tuned", "sampled"), ("tuned", "distinct"), ("tuned", "beams"), ("tuned_untied", "distinct")],
)
def test_law_5_the_first_kl_is_zero_and_lora_alone_trains(tmp_path, toy, checkpoint, way, request, monkeypatch):
    train, trained = stage.train, {}

    def spy(trainer, directory):
        trained.update({name: p.requires_grad for name, p in trainer.model.named_parameters()})
        return train(trainer, directory)

    monkeypatch.setattr(stage, "train", spy)
    reinforce(tmp_path / "grpo", toy[0], request.getfixturevalue(checkpoint), rollouts=way)
    first, *others = curve(tmp_path / "grpo", "kl")
    assert first == 0 and all(kl > 0 for kl in others)
    assert any(trained.values()) and all(("lora_" in name) == trains for name, trains in trained.items())
    assert not any(".ref." in name for name in trained), f"trl {TRL} adds a reference to an adapter that it is given"


def test_modes_are_restored_and_roll_outs_see_the_adapter(tmp_path, toy, tuned, monkeypatch):
    """Roll-outs are drawn without dropout by the weights of the step, not by those of the start."""
    seen, draw = [], grpo.RollOuts.draw

    def spy(self, places, generator):
        model = self.ranker.model
        assert not any(module.training for module in model.modules())
        lora = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_B" in name])
        ids, mask = self.ranker.encode([np.array([1, 2])])
        seen.append((lora.abs().sum().item(), model(input_ids=ids, attention_mask=mask).logits.sum().item()))
        return draw(self, places, generator)

    losses = SidGRPOTrainer._compute_loss

    def in_training(self, model, inputs):
        assert self.model.training
        return losses(self, model, inputs)

    monkeypatch.setattr(grpo.RollOuts, "draw", spy)
    monkeypatch.setattr(SidGRPOTrainer, "_compute_loss", in_training)
    reinforce(tmp_path / "grpo", toy[0], tuned)
    sizes, logits = zip(*seen, strict=True)
    assert sizes[0] == 0 < sizes[1] < sizes[2] and len(set(logits)) == 3


def test_prompts_run_once_for_their_group(tmp_path, toy, tuned, monkeypatch):
    """Forward passes of training hold micro_batch_size rows, not num_generations times as many."""
    rows, forward = [], grpo.SidGRPOTrainer._get_per_token_logps_and_entropies

    def spy(self, model, input_ids, *arguments, **options):
        def counted(**inputs):
            rows.append((len(inputs["input_ids"]), inputs["completions"].shape[:2]))
            return model(**inputs)

        return forward(self, counted, input_ids, *arguments, **options)

    monkeypatch.setattr(SidGRPOTrainer, "_get_per_token_logps_and_entropies", spy)
    reinforce(tmp_path / "grpo", toy[0], tuned, max_steps=1)
    assert set(rows) == {(3, (3, 4))} and len(rows) == 2 * 2  # policy and reference, in two micro-batches


@pytest.mark.parametrize("loss", ["dapo", "gspo", "ecpo"])
def test_micro_batches_change_nothing(tmp_path, toy, tuned, loss):
    """Neither what is drawn nor the steps, also where groups are left out and steps share roll-outs."""
    options = {"loss": loss, "num_iterations": 2, "max_steps": 4, "idle": "filter", "save_steps": 2,
               "rollouts": "sampled" if loss == "gspo" else "distinct"}  # fmt: skip
    for micro in (6, 2):
        reinforce(tmp_path / str(micro), toy[0], tuned, micro_batch_size=micro, **options)
    assert curve(tmp_path / "6") == pytest.approx(curve(tmp_path / "2"), rel=1e-3, abs=1e-5)
    one, other = weights_of(tmp_path / "6"), weights_of(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4)


class TokenizeResult(Exception):
    """Ends a run once its trainer is there."""


def made(out: Path, toy, tuned, **options) -> tuple[SidGRPOTrainer, dict]:
    """A trainer before its first step, and a batch of roll-outs of the first six prompts."""
    kept: list[SidGRPOTrainer] = []
    with pytest.MonkeyPatch.context() as patch:

        def keep(trainer, directory):
            kept.append(trainer)
            raise TokenizeResult

        # Open for as long as the process lives: the forward is asked after the run has ended.
        patch.setattr(stage, "sibling_scores_in_forward", opened)
        patch.setattr(stage, "train", keep)
        with pytest.raises(TokenizeResult):
            reinforce(out, toy[0], tuned, **{"micro_batch_size": 6, **options})
    trainer = kept[0]
    trainer.state.epoch, trainer.current_gradient_accumulation_steps = 0, 1
    trainer.model.train()
    return trainer, trainer._generate_and_score_completions(numbers(trainer.num_generations))


def numbers(num_generations: int) -> list[dict]:
    """Rows of six prompts as TRL hands them on."""
    return [{"prompt": str(number)} for number in range(6) for _ in range(num_generations)]


def opened(*given):
    OPEN.append(sibling_scores_in_forward(*given))  # kept, or it would be closed with the last reference to it
    OPEN[-1].__enter__()
    return contextlib.nullcontext()


OPEN = []


@pytest.fixture(scope="module")
def trainers(toy, tuned, tmp_path_factory):
    """A trainer and a batch of each loss."""
    root = tmp_path_factory.mktemp("trainers")
    options = {"rollouts": "sampled", "num_iterations": 2, "save_steps": 2, "temperature": 2.0, "beta": 0.1}
    return {
        loss: made(root / loss, toy, tuned, loss=loss, **options)
        for loss in ("grpo", "dr_grpo", "dapo", "gspo", "ecpo")
    }


def test_the_gradient_is_that_of_the_expected_reward(tmp_path, toy, tuned):
    """Where all SIDs are drawn nothing is left to chance: weights, baseline, mask and TRL's loss together are exact."""
    trainer, batch = made(tmp_path / "all", toy, tuned, loss="dr_grpo", rollouts="distinct", num_generations=11,
                          rewards=["prefix"], beta=0.0, temperature=2.0)  # fmt: skip
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(trainer._compute_loss(trainer.model, batch), parameters)
    rollouts = trainer.rounds.rollouts
    expected = 0
    for number, place in enumerate(trainer.rounds.examples(range(6), 0)):
        target = int(rollouts.sequences[place][-1])
        ids, mask = batch["prompt_ids"][number, :1], batch["prompt_mask"][number, :1]
        sids = np.unique(rollouts.ranker.table.all_codes, axis=0)
        target_codes = rollouts.ranker.table.codes([target])[0]
        rewards = torch.tensor((sids == target_codes).cumprod(axis=1).mean(axis=1), dtype=torch.float32)
        tokens = torch.from_numpy(rollouts.vocabulary.token_ids(sids)).unsqueeze(0)
        log_probs = trainer.model(input_ids=ids, attention_mask=mask, completions=tokens).log_probs.sum(dim=2)[0]
        expected = expected - (log_probs.exp() * rewards).sum() / 6 / 3  # Dr. GRPO divides by the longest completion
    exact = torch.autograd.grad(expected, parameters)
    assert max(gradient.abs().max() for gradient in exact) > 1e-3
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def stepped(batch):
    """The batch as if the policy had moved since: old log-probabilities that differ by up to .5."""
    noise = torch.rand(batch["old_per_token_logps"].shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return {**batch, "old_per_token_logps": batch["old_per_token_logps"] + noise}


def by_hand(trainer, batch, level="token", bound=None):
    """(U * G, C) ratios, per-token losses and KL, from the definitions."""
    flat = {name: value.flatten(0, 1) if value.dim() else value for name, value in batch.items()}
    ids = torch.cat([flat["prompt_ids"], flat["completion_ids"]], dim=1)
    mask = torch.cat([flat["prompt_mask"], flat["completion_mask"]], dim=1)
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 3)
    old, reference = flat["old_per_token_logps"], flat["ref_per_token_logps"]
    if bound is not None:
        old = torch.maximum(old, logps - np.log(bound))
    ratio = logps - old if level == "token" else (logps - old).mean(dim=1, keepdim=True)
    ratio, advantages = ratio.exp(), flat["advantages"].unsqueeze(1)
    policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = (reference - logps).exp() - (reference - logps) - 1
    return ratio, policy + 0.1 * kl


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "ecpo"])
def test_losses_by_hand(trainers, loss):
    """SIDs here have 3 codes each, over which every loss averages; nothing is left out."""
    trainer, batch = trainers[loss]
    batch = stepped(batch)
    ratio, expected = by_hand(trainer, batch, *{"gspo": ["sequence"], "ecpo": ["token", 1.3]}.get(loss, []))
    assert ratio.max() > 1.2 > 0.8 > ratio.min()
    assert (ratio.max() <= 1.3 + 1e-5) == (loss == "ecpo")
    found = trainer._compute_loss(trainer.model, batch)
    torch.testing.assert_close(found, expected.mean())


def test_grpo_is_trls_own_loss(trainers):
    """Where nothing is weighed, TRL's `grpo` under its own mask and advantages is the same."""
    trainer, batch = trainers["grpo"]
    batch = stepped(batch)
    ours = trainer._compute_loss(trainer.model, batch)
    trainer.loss_type, theirs = "grpo", {name: value for name, value in batch.items() if name != "tool_mask"}
    try:
        torch.testing.assert_close(trainer._compute_loss(trainer.model, theirs), ours)
    finally:
        trainer.loss_type = "dr_grpo"


def test_advantages_of_independent_draws_are_trls(trainers, monkeypatch):
    trainer, _ = trainers["grpo"]
    captured, advance = [], GRPOTrainer._generate_and_score_completions
    monkeypatch.setattr(
        GRPOTrainer, "_generate_and_score_completions",
        lambda self, inputs: captured.append(advance(self, inputs)) or {**captured[-1]},
    )  # fmt: skip
    ours = trainer._generate_and_score_completions(numbers(4))
    torch.testing.assert_close(ours["advantages"].flatten(), captured[0]["advantages"], atol=1e-4, rtol=1e-4)
    assert ours["advantages"].abs().max() > 0.5


def test_ecpo_bounds_the_ratio_and_keeps_its_gradient():
    new, old = torch.tensor([0.0, 0.0, 0.0], requires_grad=True), torch.tensor([-2.0, -0.1, 1.0])
    ratio = (new - early_clipped(old, new, 1.3)).exp()
    assert ratio.tolist() == pytest.approx([1.3, np.exp(0.1), np.exp(-1)])
    ratio.sum().backward()
    assert new.grad.tolist() == pytest.approx([1.3, np.exp(0.1), np.exp(-1)])


def always_idle(history, item_ids, target):
    return [1.0] * len(item_ids)


def every_other(history, item_ids, target):
    """Signal for every other of the items that histories of the toy catalogue end in (even ones)."""
    return [float(i) * (int(history[-1].rsplit("-", 1)[1]) // 2 % 2) for i in range(len(item_ids))]


def test_idle_groups_alone_move_nothing(tmp_path, toy, tuned):
    """By the rewards; the KL of what is left out does not count either."""
    reinforce(tmp_path / "grpo", toy[0], tuned, rewards=[f"{__file__}:always_idle"], idle="filter", max_steps=2)
    assert curve(tmp_path / "grpo", "idle_share") == [1, 1]
    assert curve(tmp_path / "grpo", "grad_norm") == [0, 0]


def test_filtered_groups_leave_the_mean_of_the_others(trainers):
    """The loss over 6 groups of which 2 are left out is that over the other 4."""
    trainer, _ = trainers["grpo"]
    inputs = [{"weight": 1.0, "is_idle": group in (1, 4)} for group in range(6) for _ in range(4)]
    mask = torch.ones(24, 3, dtype=torch.int64)
    trainer.config.idle = "filter"
    try:
        found = trainer._mask(inputs, mask).unflatten(0, (6, 4))
    finally:
        trainer.config.idle = "keep"
    live = [0, 2, 3, 5]
    assert (found[[1, 4]] == 0).all() and torch.allclose(found[live], torch.tensor(1.5))


def test_a_short_sid_weighs_as_much_as_a_long_one(trainers):
    """`grpo` averages over the tokens of a completion before it averages over completions; `dapo` over all tokens."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    inputs = [{"weight": 2.0, "is_idle": False}, {"weight": 1.0, "is_idle": False}]
    assert trainers["grpo"][0]._mask(inputs, mask).tolist() == [[2, 2, 2], [3, 0, 0]]
    assert trainers["dapo"][0]._mask(inputs, mask).tolist() == [[2, 2, 2], [1, 0, 0]]


def test_refilled_groups_are_of_other_prompts_and_have_signal(tmp_path, toy, tuned):
    options = {"rewards": [f"{__file__}:every_other"], "max_steps": 2}
    reinforce(tmp_path / "keep", toy[0], tuned, **options)
    reinforce(tmp_path / "refill", toy[0], tuned, idle="refill", **options)
    assert curve(tmp_path / "refill", "idle_share")[0] == curve(tmp_path / "keep", "idle_share")[0] > 0
    assert curve(tmp_path / "keep", "frac_reward_zero_std")[0] > 0
    assert curve(tmp_path / "refill", "frac_reward_zero_std") == [0, 0]
    assert all(drawn > 0 for drawn in curve(tmp_path / "refill", "refill_draws"))


def test_every_prompt_once_an_epoch_in_another_order():
    rounds = Rounds(types.SimpleNamespace(sequences=[None] * 21), types.SimpleNamespace(seed=0))
    first, second = (rounds.examples(range(21), epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(21)) and first != second
    assert rounds.examples([3, 7], 0) == [first[3], first[7]]


def test_contract_of_the_overridden_methods():
    """Names and arguments of what is overridden, in the version that they were read in."""
    assert TRL.startswith("1.16."), f"trl {TRL}: read its GRPOTrainer again, then name the version here"
    signature = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert signature[:7] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
                             "compute_entropy"]  # fmt: skip
    assert list(inspect.signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]
    ours = {name for name, value in vars(SidGRPOTrainer).items() if inspect.isfunction(value)}
    assert ours & set(dir(GRPOTrainer)) == {
        "__init__", "_compute_loss", "_generate_and_score_completions", "_get_per_token_logps_and_entropies", "log",
    }  # fmt: skip


def test_contract_old_log_probabilities_are_read_after_the_new_ones():
    """ECPO puts its own between the two."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    new, old = "self._get_per_token_logps_and_entropies(", 'inputs.get("old_per_token_logps")'
    assert source.index(new) < source.index(old), TRL
    assert source.count('completion_mask * inputs["tool_mask"]') == 1, TRL


def test_contract_trl_shuffles_and_splits_along_the_first_axis():
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    torch.manual_seed(0)
    batch = {"a": torch.arange(24).view(6, 4), "b": torch.arange(24).view(6, 4, 1), "n": torch.tensor(5)}
    shuffled = shuffle_sequence_dict(batch)
    assert shuffled["a"].equal(shuffled["b"].squeeze(2)) and not shuffled["a"].equal(batch["a"]), TRL
    assert sorted(shuffled["a"][:, 0].tolist()) == [0, 4, 8, 12, 16, 20], TRL
    parts = split_tensor_dict(shuffled, 2)
    assert [part["a"].shape for part in parts] == [(3, 4), (3, 4)] and parts[0]["n"] == 5, TRL


def test_contract_rollout_func_gets_each_prompt_repeated(tmp_path, toy, tuned, monkeypatch):
    asked, roll_out = [], grpo.roll_out
    monkeypatch.setattr(grpo, "roll_out", lambda prompts, trainer: asked.append(prompts) or roll_out(prompts, trainer))
    reinforce(tmp_path / "grpo", toy[0], tuned, max_steps=1)
    assert asked == [[str(n) for n in range(6) for _ in range(4)]], TRL
