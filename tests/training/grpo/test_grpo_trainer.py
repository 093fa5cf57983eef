"""The GRPO trainer: the order of prompts, what a step rolls out, law 5, and what transformers is relied on for."""

from __future__ import annotations

import importlib.metadata
import inspect

import numpy as np
import pytest
import torch
from transformers import Trainer

from llmrec.stages import grpo as stage
from llmrec.training.grpo.groups import GroupSampler
from llmrec.training.grpo.trainer import SidGRPOTrainer, deal, epoch_order
from tests.support.extended import fine_tune, weights_of
from tests.support.reinforced import curve, reinforce, scored

TRANSFORMERS = importlib.metadata.version("transformers")


@pytest.fixture(scope="session")
def tuned_untied(toy, untied, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned_untied") / "sft"
    fine_tune(out, toy[0], untied, train="full", max_steps=5, learning_rate=5e-3, batch_size=24, max_history=10)
    return out


def test_every_prompt_once_an_epoch_in_another_order():
    first, second = (epoch_order(0, epoch, 21).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(21)) and first != second
    assert epoch_order(0, 1, 21).tolist() == second != epoch_order(1, 1, 21).tolist()


def test_each_process_rolls_out_consecutive_prompts():
    """25 prompts, in steps of 2 processes x 2 passes x 3 prompts; accelerate deals batches out in turn."""
    batches = np.array(deal(25, micro_batch_size=3, num_passes=2, num_processes=2)).reshape(-1, 3)
    of_process = [batches[rank::2].ravel().tolist() for rank in (0, 1)]
    assert of_process == [[*range(6), *range(12, 18)], [*range(6, 12), *range(18, 24)]]
    assert deal(25, 3, 2, 1) == list(range(24)), "the last prompt fills no step"


def test_roll_outs_depend_on_the_step_and_the_place_and_on_nothing_else(trainer_of, tuned, monkeypatch):
    trainer = trainer_of(tuned)

    def drawn(places=range(6)) -> list:
        return [group.completions.tolist() for group in trainer.roll_out(places)]

    with scored(trainer):
        first = drawn()
        torch.manual_seed(1)
        assert drawn() == first
        trainer.state.global_step = 1
        second_step = drawn()
        assert first != second_step
        monkeypatch.setenv("RANK", "1")
        assert drawn([4, 5]) == second_step[4:], "whoever rolls them out, and with which others"


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
    reinforce(tmp_path / "grpo", toy[0], request.getfixturevalue(checkpoint), rollouts=way, max_steps=2)
    first, second = curve(tmp_path / "grpo", "kl")
    assert first == 0 < second
    assert any(trained.values()) and all(("lora_" in name) == trains for name, trains in trained.items())


def test_modes_are_restored_and_roll_outs_see_the_adapter(tmp_path, toy, tuned, monkeypatch):
    """Roll-outs are drawn without dropout by the weights of the step, not by those of the start."""
    seen, draw = [], GroupSampler.draw

    def spy(self, examples, generator):
        model = self.ranker.model
        assert not any(module.training for module in model.modules())
        lora = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_B" in name])
        ids, mask = self.ranker.encode([np.array([1, 2])])
        seen.append((lora.abs().sum().item(), model(input_ids=ids, attention_mask=mask).logits.sum().item()))
        return draw(self, examples, generator)

    compute_loss = SidGRPOTrainer.compute_loss

    def in_training(self, model, inputs, **options):
        assert self.model.training
        return compute_loss(self, model, inputs, **options)

    monkeypatch.setattr(GroupSampler, "draw", spy)
    monkeypatch.setattr(SidGRPOTrainer, "compute_loss", in_training)
    reinforce(tmp_path / "grpo", toy[0], tuned)
    sizes, logits = zip(*seen, strict=True)
    assert sizes[0] == 0 < sizes[1] < sizes[2] and len(set(logits)) == 3


def test_a_step_rolls_out_its_prompts_together_and_runs_each_once(tmp_path, toy, tuned, monkeypatch):
    """Two micro-batches of 3 prompts; forward passes hold 3 rows, not num_generations times as many."""
    asked, passes = [], []
    roll_out, compute_loss = SidGRPOTrainer.roll_out, SidGRPOTrainer.compute_loss

    def counted(self, model, inputs, **options):
        passes.append((len(inputs["input_ids"]), inputs["completions"].shape[:2]))
        return compute_loss(self, model, inputs, **options)

    monkeypatch.setattr(SidGRPOTrainer, "roll_out", lambda self, places: asked.append(places) or roll_out(self, places))
    monkeypatch.setattr(SidGRPOTrainer, "compute_loss", counted)
    reinforce(tmp_path / "grpo", toy[0], tuned, max_steps=4)
    steps = [[*range(6)], [*range(6, 12)], [*range(12, 18)]]
    assert asked == [*steps, steps[0]], "an epoch has three whole steps of 6 prompts"
    assert set(passes) == {(3, (3, 4))} and len(passes) == 4 * 2


def test_micro_batches_change_nothing(tmp_path, toy, tuned):
    """Neither what is drawn nor the steps."""
    for micro in (6, 2):
        reinforce(tmp_path / str(micro), toy[0], tuned, micro_batch_size=micro)
    assert curve(tmp_path / "6") == pytest.approx(curve(tmp_path / "2"), rel=1e-3, abs=1e-5)
    one, other = weights_of(tmp_path / "6"), weights_of(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4)


def always_equal(history, item_ids, target):
    return [1.0] * len(item_ids)


def test_groups_of_equal_rewards_move_nothing(tmp_path, toy, tuned):
    """Their advantages are 0, and at the start so is the gradient of the KL."""
    reinforce(tmp_path / "grpo", toy[0], tuned, rewards=[f"{__file__}:always_equal"], max_steps=2)
    assert curve(tmp_path / "grpo", "idle_share") == [1, 1]
    assert curve(tmp_path / "grpo", "grad_norm") == [0, 0]


def test_contract_hooks_of_the_trainer():
    """Methods of transformers' Trainer that are overridden, with their parameters; none is private."""
    hooks = {"get_batch_samples": ["epoch_iterator", "num_batches", "device"],
             "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
             "log": ["logs", "start_time"]}  # fmt: skip
    for name, parameters in hooks.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == ["self", *parameters], TRANSFORMERS
    ours = {name for name, value in vars(SidGRPOTrainer).items() if inspect.isfunction(value)}
    assert ours & set(dir(Trainer)) == {"__init__", *hooks}
