"""Contracts of transformers' Trainer behind whole checkpoints: where it writes, what it deletes and what it loads."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from llmrec.training import checkpoints
from llmrec.training.checkpoints import ASIDE, corruption, numbered, saved_whole
from llmrec.training.trainer import SidTrainer
from tests.training.test_checkpoints import names

VERSIONS = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate", "torch")}


class Line(torch.nn.Module):
    """One weight, 1 at first, that moves towards the target."""

    def __init__(self, target: float):
        super().__init__()
        self.weight, self.target = torch.nn.Parameter(torch.ones(1)), target

    def forward(self, x):
        return {"loss": (self.weight * x - self.target).square().mean(), "logits": x}


class WholeTrainer(Trainer):
    """transformers' Trainer that saves as `SidTrainer` does."""

    def _save_checkpoint(self, model, trial):
        with saved_whole(self.args, self.state):
            super()._save_checkpoint(model, trial)


def plain_trainer(directory: Path, target: float, **options) -> WholeTrainer:
    """A trainer that saves after each of 4 steps."""
    data = Dataset.from_dict({"x": [[1.0]] * 4})
    arguments = TrainingArguments(
        output_dir=str(directory), max_steps=4, per_device_train_batch_size=1, save_steps=1, save_total_limit=2,
        learning_rate=0.01, use_cpu=True, report_to="none", disable_tqdm=True, label_names=["x"], **options,
    )  # fmt: skip
    return WholeTrainer(model=Line(target), args=arguments, train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_best_model", ["self"]),
        ("_issue_warnings_after_load", ["self", "load_result"]),
    ],
)
def test_contract_private_hooks_of_the_trainer_have_their_signature(name, parameters):
    """The private methods that `SidTrainer` overrides."""
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters, VERSIONS
    private = {name for name in vars(SidTrainer) if name.startswith("_") and hasattr(Trainer, name)}
    assert name in private


def test_contract_the_trainer_writes_all_of_a_checkpoint_below_output_dir(monkeypatch, tmp_path):
    """And deletes an old one only after the new one has its name."""
    trainer, seen = plain_trainer(tmp_path, 2.0), []
    publish = checkpoints.publish

    def watched(written, final):
        seen.append(names(tmp_path))
        assert not final.exists(), VERSIONS
        files = {path.name for path in written.iterdir()}
        expected = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
        assert expected <= files, VERSIONS
        publish(written, final)

    monkeypatch.setattr(checkpoints, "publish", watched)
    trainer.train()
    assert seen == [
        [ASIDE],
        ["checkpoint-1", ASIDE],
        ["checkpoint-1", "checkpoint-2", ASIDE],
        ["checkpoint-2", "checkpoint-3", ASIDE],
    ], VERSIONS
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"], VERSIONS
    assert not any(corruption(path) for path in numbered(tmp_path))
    assert trainer.args.output_dir == str(tmp_path)


def test_contract_a_trainer_that_writes_elsewhere_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, model, trial: None)
    with pytest.raises(AssertionError, match=f"transformers {VERSIONS['transformers']} does not write"):
        plain_trainer(tmp_path, 2.0).train()


@pytest.mark.parametrize(("target", "best"), [(2.0, "checkpoint-4"), (1.0, "checkpoint-1")])
def test_contract_the_best_checkpoint_has_its_final_place(tmp_path, target, best):
    """In the state, in its file, for the callbacks, and for the Trainer that loads it at the end and keeps it.

    On the way to 2 each step is better than the one before; at 1, where it starts, no step is better than the first.
    """

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            assert args.output_dir == str(tmp_path)
            assert corruption(tmp_path / f"checkpoint-{state.global_step}") is None

    trainer = plain_trainer(tmp_path, target, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    trainer.add_callback(Watch())
    trainer.add_callback(EarlyStoppingCallback(9))
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / best), VERSIONS
    assert {best, "checkpoint-4"} <= set(names(tmp_path)), VERSIONS
    for path in numbered(tmp_path):
        assert ASIDE not in (path / "trainer_state.json").read_text(), VERSIONS
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / best), VERSIONS


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path):
    trainer = plain_trainer(tmp_path, 2.0)
    trainer.train()
    trainer.model.weight.data.fill_(7)
    trainer._save_checkpoint(trainer.model, None)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert corruption(tmp_path / "checkpoint-4") is None
