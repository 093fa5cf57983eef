"""Trainer checkpoints that are whole or not there, and the choice of the one to continue from.

The Trainer writes a checkpoint in place and later takes the highest number unchecked: after a kill in the middle of a
save it crashes, and with a flipped bit or a missing optimizer it ends silently with other weights (transformers #35525,
#31283, #40790). Here each is written aside, brought to the disk, sealed by a list of its files' hashes and renamed into
place, and only one whose files still match is continued from.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.manifest import sha256_file, write_json

SEAL = "llmrec_seal.json"
ASIDE = "unfinished"  # beside the checkpoints; not of their name, which the Trainer's rotation counts and deletes


class WholeCheckpoints:
    """Goes before a Trainer among the bases of its subclass."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        directory, name = Path(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        main = self.is_world_process_zero()
        try:
            with written_aside(self.args) as aside:
                super()._save_checkpoint(model, trial)
            self._name_best_in(directory, aside / name)
            processes.wait()  # every process writes its own random state, and nothing in the Trainer waits for it
            if main:
                publish(aside / name, directory / name)
        except Exception:
            if main:
                shutil.rmtree(directory / ASIDE, ignore_errors=True)
                kept = numbered(directory)
                say(f"{name} could not be written; {f'{kept[0].name} is kept' if kept else 'there is none before it'}.")
            raise
        if main:  # by number: a rename keeps the time of a directory
            rotate_checkpoints(str(directory), self.args.save_total_limit, self.state.best_model_checkpoint)
        processes.wait()  # whatever reads the checkpoint next, as `load_best_model_at_end` does, finds it

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        problem = damage(best)
        if problem is not None:
            raise ValueError(
                f"{best.name} holds the best weights, those of step {self.state.best_global_step}, but {problem}. Run "
                "the same command again; it trains again from the newest checkpoint that is whole."
            )
        super()._load_best_model()

    def _name_best_in(self, directory: Path, written: Path) -> None:
        """Where the Trainer took the checkpoint for the best one, name it by the place it is about to have."""
        if self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint) == written:
            self.state.best_model_checkpoint = str(directory / written.name)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))


@contextlib.contextmanager
def written_aside(arguments: TrainingArguments) -> Iterator[Path]:
    """Let the Trainer write below `ASIDE` in its output directory, where its rotation finds nothing to delete."""
    directory = arguments.output_dir
    arguments.output_dir = os.path.join(directory, ASIDE)
    try:
        yield Path(arguments.output_dir)
    finally:
        arguments.output_dir = directory


def publish(written: Path, final: Path) -> None:
    """Bring a checkpoint to the disk, seal it and give it its name, in this order; a cut leaves all of it or nothing.

    Args:
        written: Directory that every process has written its part to; its parent is removed.
        final: Its place, in the parent's parent.
    """
    assert written.is_dir(), f"transformers {transformers.__version__} does not write checkpoints to args.output_dir"
    for path in written.rglob("*"):
        to_disk(path)
    seal(written)
    to_disk(written)
    if final.exists():  # the same step, saved again
        final.rename(written.with_name("replaced"))
    written.rename(final)
    to_disk(final.parent)
    shutil.rmtree(written.parent)


def to_disk(path: Path) -> None:
    """fsync a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(directory: Path) -> None:
    """Record the hash of every file of a checkpoint."""
    files = sorted(f for f in directory.rglob("*") if f.is_file() and f.name != SEAL)
    write_json(directory / SEAL, {str(f.relative_to(directory)): sha256_file(f) for f in files})


def damage(directory: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it is as it was sealed."""
    if not directory.is_dir():
        return "it is not there any more"
    if not (directory / SEAL).is_file():
        return f"it is unfinished, it has no {SEAL}"
    try:
        hashes = json.loads((directory / SEAL).read_text(encoding="utf-8"))
        if not isinstance(hashes, dict) or not hashes:
            return f"{SEAL} lists no files"
        for name, expected in hashes.items():
            if not (directory / name).is_file():
                return f"{name} is missing"
            if sha256_file(directory / name) != expected:
                return f"{name} has changed since it was written"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    return None


def damage_of_best(directory: Path) -> str | None:
    """Why the best checkpoint before a whole one cannot be used, which a run that continued here might have to load."""
    step = json.loads((directory / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_global_step")
    best = directory.with_name(f"{PREFIX_CHECKPOINT_DIR}-{step}")
    problem = damage(best) if step and best != directory else None
    return problem and f"the best step before it is in {best.name}, and {problem}"


def numbered(directory: Path) -> list[Path]:
    """Checkpoints in a Trainer's output directory, the newest first."""
    found = [d for d in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if d.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=lambda d: -int(d.name.rsplit("-", 1)[1]))


def is_last(directory: Path) -> bool:
    """Whether a checkpoint is of the last step, after which the Trainer of transformers 5.23 would take one more.

    It is the last of all, or the one at which early stopping ended training.
    """
    state = json.loads((directory / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    control = (state.get("stateful_callbacks") or {}).get("TrainerControl", {"args": {}})
    return state["global_step"] >= state["max_steps"] or control["args"].get("should_training_stop", False)


def newest_whole(directory: Path) -> Path | None:
    """The newest checkpoint that is whole and not of the last step, the same in every process.

    Newer ones that are not whole, and what a kill left half-written, are named and removed: rotation would count them.
    """
    chosen = processes.gather(_choose(directory) if processes.is_main() else [])
    return directory / chosen[0] if chosen else None


def _choose(directory: Path) -> list[str]:
    unfinished, found = numbered(directory / ASIDE), numbered(directory)
    for path in unfinished:
        say(f"{path.name} was being written when the run ended: removed.")
    shutil.rmtree(directory / ASIDE, ignore_errors=True)
    for path in found:
        problem = damage(path) or damage_of_best(path)
        if problem is None and is_last(path):
            say(f"{path.name} is of the last step: the steps before it are taken again.")
        elif problem is None:
            return [path.name]
        else:
            say(f"{path.name} is passed over and removed: {problem}.")
            shutil.rmtree(path)
    if unfinished or found:
        say("No checkpoint is left to continue from; training starts again.")
    return []
