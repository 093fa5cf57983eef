"""Resumption: a killed run continues from the newest whole checkpoint and ends like an uninterrupted one.

Where a kill is called one, it is: SIGKILL, in a process of its own, at a random moment or in a chosen function.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from llmrec.configs import SftConfig
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.runtime.manifest import read_manifest
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.stages import sft as stage
from llmrec.training import checkpoints, trainer
from llmrec.training.checkpoints import ASIDE, SEAL, corruption, newest_whole, numbered, seal
from llmrec.training.sft import trainer as sft
from llmrec.training.sft.examples import HistoryCollator
from tests.support.extended import fine_tune, losses, same_weights
from tests.support.forks import Forks

# Checkpoints after steps 2, 4 and 5, of which two are kept; dropout, so that a lost random state shows.
OPTIONS = {"max_steps": 5, "save_steps": 2, "dropout": 0.1, "micro_batch_size": 4}
ALOUD = {"LLMREC_QUIET": ""}  # the forks are quiet otherwise
# What `fine_tune` gives besides, as flags of a command.
SHAPE = {"batch_size": 8, "max_history": 4, "lora_rank": 4, "warmup_steps": 0, "logging_steps": 1, "device": "cpu"}


def interrupt_at(monkeypatch, step: int) -> None:
    """Raise KeyboardInterrupt after an optimiser step and the checkpoint that is saved there."""
    training_step = trainer.SidTrainer.training_step

    def dying(self, *arguments, **options):
        if self.state.global_step >= step:
            raise KeyboardInterrupt
        return training_step(self, *arguments, **options)

    monkeypatch.setattr(trainer.SidTrainer, "training_step", dying)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    fine_tune(out / "lora", *toy, **OPTIONS)
    return out


def checkpoints_of(out: Path) -> Path:
    """Directory of the checkpoints of an unfinished run."""
    return out.with_name(out.name + ".partial") / SCRATCH / "trainer"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def start_and_kill(monkeypatch, out, toy, step, **options):
    """Kill a run before optimiser step `step` + 1, and return the directory of its checkpoints."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(out, *toy, **OPTIONS, **options)
    return checkpoints_of(out)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def empty_newer(newest):
    newest.with_name("checkpoint-5").mkdir()
    shutil.rmtree(newest)


DAMAGE = {
    "bit of the weights": (lambda d: flip(d / "adapter_model.safetensors"), "adapter_model.safetensors has changed"),
    "bit of the optimizer": (lambda d: flip(d / "optimizer.pt"), "optimizer.pt has changed"),
    "no optimizer": (lambda d: (d / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "no scheduler": (lambda d: (d / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "no random state": (lambda d: (d / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "truncated state": (lambda d: half(d / "trainer_state.json"), "trainer_state.json has changed"),
    "no seal": (lambda d: (d / SEAL).unlink(), f"it is unfinished, it has no {SEAL}"),
    "truncated seal": (lambda d: half(d / SEAL), "it cannot be read"),
    "empty newer directory": (empty_newer, f"it is unfinished, it has no {SEAL}"),
}


@pytest.fixture(scope="module")
def interrupted(toy, tmp_path_factory):
    """A run that stopped after step 4, with checkpoints of steps 2 and 4; to be copied."""
    out = tmp_path_factory.mktemp("interrupted") / "sft"
    with pytest.MonkeyPatch.context() as patch:
        start_and_kill(patch, out, toy, 4)
    return out.with_name("sft.partial")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_corrupt_checkpoint_is_passed_over(capsys, tmp_path, interrupted, kind):
    """Every kind of corruption leads to the same older checkpoint."""
    shutil.copytree(interrupted / SCRATCH / "trainer", tmp_path / "trainer")
    spoil, reason = DAMAGE[kind]
    spoil(tmp_path / "trainer" / "checkpoint-4")
    assert newest_whole(tmp_path / "trainer") == tmp_path / "trainer" / "checkpoint-2"
    assert names(tmp_path / "trainer") == ["checkpoint-2"]
    assert f"is passed over and removed: {reason}" in capsys.readouterr().err


def test_training_resumes_from_the_checkpoint_before_a_corrupt_one(capsys, tmp_path, toy, interrupted, uninterrupted):
    shutil.copytree(interrupted, tmp_path / "sft.partial")
    flip(checkpoints_of(tmp_path / "sft") / "checkpoint-4" / "adapter_model.safetensors")
    fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    said = capsys.readouterr().err
    assert "checkpoint-4 is passed over" in said and "continuing from checkpoint-2" in said
    assert same_weights(tmp_path / "sft", uninterrupted / "lora")
    assert losses(tmp_path / "sft") == losses(uninterrupted / "lora")


@pytest.mark.parametrize(("logging_steps", "step"), [(3, 2), (3, 4), (10, 2), (10, 4)])
def test_means_of_losses_are_of_all_steps_after_a_resume(monkeypatch, tmp_path, toy, logging_steps, step):
    """Stopped within the steps of a log entry, and in a run that is shorter than one."""
    for out in (tmp_path / "whole", tmp_path / "resumed"):
        if out.name == "resumed":
            start_and_kill(monkeypatch, out, toy, step, logging_steps=logging_steps)
        fine_tune(out, *toy, **OPTIONS, logging_steps=logging_steps)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert losses(resumed) == losses(whole)
    assert read_manifest(resumed)["counts"]["loss"] == read_manifest(whole)["counts"]["loss"]


def test_training_starts_again_without_a_whole_checkpoint(capsys, tmp_path, interrupted):
    shutil.copytree(interrupted / SCRATCH / "trainer", tmp_path / "trainer")
    for name in ("checkpoint-2", "checkpoint-4"):
        (tmp_path / "trainer" / name / "optimizer.pt").unlink()
    assert newest_whole(tmp_path / "trainer") is None and names(tmp_path / "trainer") == []
    assert "training starts again" in capsys.readouterr().err
    assert newest_whole(tmp_path / "trainer") is None and capsys.readouterr().err == ""


def test_the_newest_checkpoint_is_chosen_by_number(capsys, tmp_path):
    """Not by name or time; other directories are left alone, and half-written checkpoints are removed."""
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-best", f"{ASIDE}/checkpoint-12"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_bytes(b"w")
        (tmp_path / name / "trainer_state.json").write_text('{"global_step": 10, "max_steps": 20}')
    for name in ("checkpoint-10", "checkpoint-9", f"{ASIDE}/checkpoint-12"):
        seal(tmp_path / name)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9", "checkpoint-best"]
    assert "checkpoint-12 was being written when the run ended: removed" in capsys.readouterr().err
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"v")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-9"
    assert newest_whole(tmp_path / "nothing here") is None


def test_the_final_checkpoint_is_not_resumed(capsys, tmp_path):
    """The Trainer would take one more step, and after it another at every later resumption."""
    for step in (4, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(
            f'{{"global_step": {step}, "max_steps": 5}}'
        )
        seal(tmp_path / f"checkpoint-{step}")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-4"
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5"]
    assert "checkpoint-5 is the final checkpoint, which cannot be resumed" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", "null", "7", '{"weights": 7}', "\x00"])
def test_a_corrupt_seal_counts_as_none(tmp_path, content):
    (tmp_path / "weights").write_bytes(b"w")
    (tmp_path / SEAL).write_text(content)
    assert corruption(tmp_path)


def test_a_checkpoint_is_flushed_before_it_is_renamed(monkeypatch, tmp_path):
    """Every file and directory, then the seal, then the entry of the seal, the rename, and the entry of the rename."""
    written, final = tmp_path / ASIDE / "checkpoint-1", tmp_path / "checkpoint-1"
    (written / "deep").mkdir(parents=True)
    (written / "deep" / "a").write_bytes(b"a")
    steps = []
    for name in ("fsync", "rename"):
        call = getattr(os, name)

        def watched(first, *others, name=name, call=call):
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            steps.append((name, str(Path(path).relative_to(tmp_path))))
            return call(first, *others)

        monkeypatch.setattr(os, name, watched)
    checkpoints.publish(written, final)
    aside = f"{ASIDE}/checkpoint-1"
    assert sorted(steps[:2]) == [("fsync", f"{aside}/deep"), ("fsync", f"{aside}/deep/a")]
    assert steps[2:] == [("fsync", f"{aside}/{SEAL}.tmp"), ("fsync", aside), ("rename", aside), ("fsync", ".")]
    assert names(tmp_path) == ["checkpoint-1"] and corruption(final) is None


def test_a_seal_lists_every_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    seal(tmp_path)
    assert list(json.loads((tmp_path / SEAL).read_text())) == ["b", "deep/a"] and corruption(tmp_path) is None


def command(out: Path, toy) -> list[str]:
    """Command line of `fine_tune(out, *toy, **OPTIONS)`."""
    options = {**SHAPE, **OPTIONS, "catalog": toy[0], "model": toy[1], "out": out}
    return ["sft", *(str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value))]


# One run that is killed again and again, each time in the given call of a function: which checkpoint is the newest
# then, and which one was being written. The first attempt also saves step 2.
DEATHS = [
    ("peft.peft_model.safe_save_file", 2, 2, 4),  # before the weights
    ("torch.save", 2, 2, 4),  # between the weights and the optimizer
    ("torch.save", 4, 2, 4),  # before the random state
    ("llmrec.training.checkpoints.seal", 1, 2, 4),
    ("os.rename", 1, 2, 4),
    ("llmrec.training.checkpoints.rotate_checkpoints", 1, 4, None),  # after the rename
    ("os.rename", 1, 4, 5),
    ("llmrec.training.checkpoints.rotate_checkpoints", 1, 5, None),  # before step 2 is deleted
    ("llmrec.runtime.stage_directory._publish", 1, 5, None),  # before the result gets its name
]


def test_killed_while_a_checkpoint_is_written(capsys, tmp_path, toy, uninterrupted, forks):
    out, before, left = tmp_path / "sft", None, None
    for function, call, newest, writing in DEATHS:
        forks.start(command(out, toy), tmp_path / "stderr", environment=ALOUD, die_in=(function, call))
        assert forks.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text()
        said = (tmp_path / "stderr").read_text()
        assert (f"continuing from checkpoint-{before}" in said) == (before is not None)
        assert (f"checkpoint-{left} was being written when the run ended" in said) == (left is not None)
        saved = checkpoints_of(out)
        assert numbered(saved)[0].name == f"checkpoint-{newest}", function
        assert [path.name for path in numbered(saved / ASIDE)] == [f"checkpoint-{writing}"] * (writing is not None)
        assert not any(corruption(path) for path in numbered(saved))
        before, left = min(newest, 4), writing  # from the last step there is nothing to continue
    fine_tune(out, *toy, **OPTIONS)
    assert "continuing from checkpoint-4" in capsys.readouterr().err
    assert same_weights(out, uninterrupted / "lora")


def last_step(stderr: Path) -> int:
    said = stderr.read_text() if stderr.exists() else ""
    lines = [line for line in said.splitlines() if line.startswith("sft: step ")]
    return int(lines[-1].split()[2]) if lines else 0


def test_killed_twice_at_random_moments(tmp_path, toy, uninterrupted, forks):
    """A step is logged before it is saved, so the last line shows how far a killed run had come."""
    out, stderr, moments = tmp_path / "sft", tmp_path / "stderr", random.Random(0)
    for steps in ((1, 2), (3, 4)):
        stderr.unlink(missing_ok=True)
        pid, step = forks.start(command(out, toy), stderr, environment=ALOUD), moments.randint(*steps)
        while last_step(stderr) < step:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        forks.wait()
        found = numbered(checkpoints_of(out))
        kept = int(found[0].name.rsplit("-", 1)[1]) if found else 0
        assert not found or corruption(found[0]) is None
        assert last_step(stderr) - kept <= OPTIONS["save_steps"] or out.is_dir()  # it was faster, and is whole
    fine_tune(out, *toy, **OPTIONS)
    assert same_weights(out, uninterrupted / "lora")


def test_an_interruption_between_training_and_merging(monkeypatch, tmp_path, toy, uninterrupted):
    def dying(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "merge", dying)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    assert same_weights(tmp_path / "sft", uninterrupted / "lora")


@pytest.mark.parametrize(("name", "kept"), [("checkpoint-2", None), ("checkpoint-4", "checkpoint-2")])
def test_a_full_disk_keeps_the_checkpoint_before(monkeypatch, capsys, tmp_path, toy, uninterrupted, name, kept):
    save = torch.save

    def full(value, path, **options):
        if name in str(path) and Path(path).name == "optimizer.pt":
            Path(path).write_bytes(b"the first")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(value, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left on device"):
            fine_tune(tmp_path / "sft", *toy, **OPTIONS)
    ending = f"{kept} is kept." if kept else "there is none before it."
    assert f"{name} could not be written; {ending}" in capsys.readouterr().err
    assert names(checkpoints_of(tmp_path / "sft")) == ([kept] if kept else [])
    if kept:
        fine_tune(tmp_path / "sft", *toy, **OPTIONS)
        assert f"continuing from {kept}" in capsys.readouterr().err
        assert same_weights(tmp_path / "sft", uninterrupted / "lora")


def start_two(forks: Forks, out: Path, toy, *flags: str, **first_or_second) -> tuple[int, int]:
    """Process ids of the two ranks of one run, with further flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ALOUD}
    return tuple(
        forks.start([*command(out, toy), *flags], out.with_name(f"stderr-{rank}"),
                    die_in=first_or_second.get(f"rank_{rank}"),
                    environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""})
        for rank in range(2)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("victim", "function", "call"), [(1, "torch.save", 2), (0, "llmrec.training.checkpoints.publish", 2)]
)
def test_two_processes(tmp_path, toy, forks, two_uninterrupted, victim, function, call):
    """One dies before its random state of step 4 is written, or before it renames what both have written."""
    out = tmp_path / "sft"
    pids = start_two(forks, out, toy, **{f"rank_{victim}": (function, call)})
    assert forks.wait(pids[victim]) == -signal.SIGKILL, (tmp_path / f"stderr-{victim}").read_text()
    assert forks.wait(pids[1 - victim]) == 2  # it lost the other one while it waited for it, and says so in a line
    lost = f"another of the 2 processes has ended or does not answer, so process {1 - victim} stops"
    last = (tmp_path / f"stderr-{1 - victim}").read_text().splitlines()[-1]
    assert lost in last and last.endswith("Run the same command again to continue.")
    saved = checkpoints_of(out)
    assert {"rng_state_0.pth", "rng_state_1.pth"} < json.loads((saved / "checkpoint-2" / SEAL).read_text()).keys()
    assert names(saved) == (["checkpoint-2"] if victim == 1 else ["checkpoint-2", ASIDE])
    assert [forks.wait(pid) for pid in start_two(forks, out, toy)] == [0, 0], (tmp_path / "stderr-0").read_text()
    said = [(tmp_path / f"stderr-{rank}").read_text() for rank in range(2)]
    assert said[0].count("continuing from checkpoint-2") == 1 and "continuing" not in said[1]
    assert same_weights(out, two_uninterrupted)


@pytest.fixture(scope="module")
def two_uninterrupted(toy, forks, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "sft"
    assert [forks.wait(pid) for pid in start_two(forks, out, toy)] == [0, 0], out.with_name("stderr-0").read_text()
    return out


def test_sums_of_two_processes_for_another_number_by_hand():
    """Losses are means over processes; averages are added over them, so that the first process takes all."""
    sums = [
        {"since_log": 3.0, "before_log": 10.0, "logged_at": 4, "averages": {"kl": [[1.0, 2.0], [3.0, 4.0]]}},
        {"since_log": 5.0, "before_log": 12.0, "logged_at": 4, "averages": {"kl": [[5.0, 6.0], [7.0, 8.0]]}},
    ]
    means = {"since_log": 4.0, "before_log": 11.0, "logged_at": 4}
    assert trainer.dealt_anew(sums, is_main=True) == {**means, "averages": {"kl": [[6.0, 8.0], [10.0, 12.0]]}}
    assert trainer.dealt_anew(sums, is_main=False) == {**means, "averages": {"kl": [[0.0, 0.0], [0.0, 0.0]]}}
    assert trainer.dealt_anew([{**each, "averages": None} for each in sums], is_main=True) == {
        **means,
        "averages": None,
    }


def test_counts_of_a_resumed_run_by_hand(monkeypatch, tmp_path, item_ids):
    """Of 4 steps, 2 epochs over items 0 1 2 and 3 0 behind 4 prompt tokens, the last one took 2 seconds.

    Item 3 has one code, the others three: an epoch is (4 + 9) + (4 + 4) = 21 tokens, a quarter of two epochs 10.5.
    """
    table = SidTable(item_ids[:4], np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, -1, -1]]))
    vocabulary = SidVocabulary(tuple(table.level_sizes), (10, 12, 14), tuple(table.level_sizes), 3)
    examples = Dataset.from_dict({"rows": [[0, 1, 2], [3, 0], []], "num_context": [0, 1, 0]})
    collator = HistoryCollator([5] * 4, SidHistoryEncoder(table, vocabulary), 0)
    stand_in = SimpleNamespace(
        config=SftConfig(out="", catalog="", model=""),
        train=lambda resume_from_checkpoint: SimpleNamespace(metrics={"train_runtime": 2.0}),
        state=SimpleNamespace(global_step=4, max_steps=4, epoch=2.0, log_history=[{"loss": 3.0}, {"loss": 1.0}]),
        train_dataset=examples,
        model=torch.nn.Linear(2, 3),
        callback_handler=SimpleNamespace(callbacks=[]),
    )
    monkeypatch.setattr(trainer, "newest_whole", lambda directory: tmp_path / "checkpoint-3")
    assert sft.train(stand_in, collator, tmp_path) == {
        "steps": 4, "examples": 2, "targets": 4, "loss": 1.0, "train_seconds": 2.0,
        "tokens_per_second": round(10.5 / 2), "trained_parameters": 9,
    }  # fmt: skip
