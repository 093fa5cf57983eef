"""Resumption: a killed run ends as if it had not been, from the newest checkpoint that is whole."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from extended import fine_tune, losses, same_weights

from llmrec.artifact import SCRATCH
from llmrec.prompts import HistoryEncoder
from llmrec.sid import SidTable
from llmrec.stages import sft as stage
from llmrec.training import sft
from llmrec.training.checkpoints import SEAL, is_whole, newest_whole, seal
from llmrec.training.examples import HistoryCollator
from llmrec.vocab import SidVocabulary


def interrupt_at(monkeypatch, step: int) -> None:
    """Raise KeyboardInterrupt at the end of an optimiser step, after what is saved there."""
    training_step = sft.SidSFTTrainer.training_step

    def dying(self, *arguments, **options):
        if self.state.global_step >= step:
            raise KeyboardInterrupt
        return training_step(self, *arguments, **options)

    monkeypatch.setattr(sft.SidSFTTrainer, "training_step", dying)


OPTIONS = {"max_steps": 5, "save_steps": 2, "lora_dropout": 0.1, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    for train in ("lora", "full"):
        fine_tune(out / train, *toy, train=train, **OPTIONS)
    return out


def start_and_kill(monkeypatch, out, toy, step, **options):
    """Checkpoints that a run killed before optimiser step `step` + 1 leaves behind."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(out, *toy, **OPTIONS, **options)
    return out.with_name(out.name + ".partial") / SCRATCH / "trainer"


@pytest.mark.parametrize("train", ["lora", "full"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, capsys, tmp_path, toy, uninterrupted, train):
    saved = start_and_kill(monkeypatch, tmp_path / "sft", toy, 4, train=train)
    assert sorted(path.name for path in saved.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    capsys.readouterr()
    fine_tune(tmp_path / "sft", *toy, train=train, **OPTIONS)
    assert "continuing from checkpoint-4" in capsys.readouterr().err
    assert same_weights(tmp_path / "sft", uninterrupted / train)
    assert losses(tmp_path / "sft") == losses(uninterrupted / train)
    assert not (tmp_path / "sft" / SCRATCH).exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "weights": lambda newest: flip(newest / "adapter_model.safetensors"),
    "no optimizer": lambda newest: (newest / "optimizer.pt").unlink(),
    "no scheduler": lambda newest: (newest / "scheduler.pt").unlink(),
    "truncated state": lambda newest: (newest / "trainer_state.json").write_bytes(b'{"epoch"'),
    "killed while saving": lambda newest: (newest / "llmrec_seal.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_checkpoint_is_passed_over(monkeypatch, capsys, tmp_path, toy, uninterrupted, damage):
    saved = start_and_kill(monkeypatch, tmp_path / "sft", toy, 4)
    DAMAGE[damage](saved / "checkpoint-4")
    capsys.readouterr()
    fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    assert "continuing from checkpoint-2" in capsys.readouterr().err
    assert same_weights(tmp_path / "sft", uninterrupted / "lora")


def test_with_no_whole_checkpoint_it_starts_again(monkeypatch, capsys, tmp_path, toy, uninterrupted):
    saved = start_and_kill(monkeypatch, tmp_path / "sft", toy, 3)
    (saved / "checkpoint-2" / "optimizer.pt").unlink()
    (saved / "checkpoint-9").mkdir()
    capsys.readouterr()
    fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    assert "continuing" not in capsys.readouterr().err
    assert same_weights(tmp_path / "sft", uninterrupted / "lora")


def test_an_interruption_between_training_and_merging(monkeypatch, tmp_path, toy, uninterrupted):
    def dying(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "merge", dying)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    assert same_weights(tmp_path / "sft", uninterrupted / "lora")


def test_counts_of_a_resumed_run_by_hand(monkeypatch, tmp_path, item_ids):
    """Of 4 steps, 2 epochs over items 0 1 2 and 3 0 behind 4 prompt tokens, the last one took 2 seconds.

    Item 3 has one code, the others three: an epoch is (4 + 9) + (4 + 4) = 21 tokens, a quarter of two epochs 10.5.
    """
    table = SidTable(item_ids[:4], np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, -1, -1]]))
    vocabulary = SidVocabulary(tuple(table.level_sizes), (10, 12, 14), tuple(table.level_sizes), 3)
    examples = Dataset.from_dict({"rows": [[0, 1, 2], [3, 0], []], "num_context": [0, 1, 0]})
    trainer = SimpleNamespace(
        is_world_process_zero=lambda: True,
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
        train=lambda resume_from_checkpoint: SimpleNamespace(metrics={"train_runtime": 2.0}),
        state=SimpleNamespace(global_step=4, max_steps=4, epoch=2.0, log_history=[{"loss": 3.0}, {"loss": 1.0}]),
        data_collator=HistoryCollator([5] * 4, HistoryEncoder(table, vocabulary), 0),
        train_dataset=examples,
        model=torch.nn.Linear(2, 3),
    )
    monkeypatch.setattr(sft, "newest_whole", lambda *arguments, **options: tmp_path / "checkpoint-3")
    assert sft.train(trainer, tmp_path) == {
        "steps": 4, "examples": 2, "targets": 4, "loss": 1.0, "train_seconds": 2.0,
        "tokens_per_second": round(10.5 / 2), "trained_parameters": 9,
    }  # fmt: skip


def test_seal_and_choice(tmp_path):
    """The newest by number, not by name or time; names that are no checkpoints are left alone."""
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"w")
    seal(tmp_path / "checkpoint-10")
    seal(tmp_path / "checkpoint-9")
    assert newest_whole(tmp_path, remove_others=False) == tmp_path / "checkpoint-10"
    assert (tmp_path / "checkpoint-11").is_dir()
    assert newest_whole(tmp_path, remove_others=True) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists() and (tmp_path / "checkpoint-best").is_dir()
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"v")
    assert newest_whole(tmp_path, remove_others=True) == tmp_path / "checkpoint-9"
    assert newest_whole(tmp_path / "nothing here", remove_others=True) is None


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "7"])
def test_a_damaged_seal_is_no_seal(tmp_path, content):
    (tmp_path / SEAL).write_text(content)
    assert not is_whole(tmp_path)


def test_a_seal_lists_every_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    seal(tmp_path)
    assert list(json.loads((tmp_path / SEAL).read_text())) == ["b", "deep/a"] and is_whole(tmp_path)
