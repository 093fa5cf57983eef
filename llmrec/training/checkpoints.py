"""Trainer checkpoints that are either complete or absent, and the choice of the one to resume from.

transformers writes a checkpoint in place and later resumes from the highest number without checking it. After a kill in
the middle of a save it crashes; after a flipped bit or a lost optimizer file it ends silently with other weights
(transformers #35525, #31283, #40790). Here each checkpoint is written in a directory of its own, flushed to the disk,
sealed by a list of its files' hashes and renamed into place. Only a checkpoint whose files match its seal is resumed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers import TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME_BIN, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.disk import flush
from llmrec.runtime.manifest import sha256_file, write_json

SEAL = "llmrec_seal.json"
ASIDE = "unfinished"  # lies with the checkpoints but is not named like one: the Trainer counts and deletes those


@contextlib.contextmanager
def saved_whole(arguments: TrainingArguments, state: TrainerState) -> Iterator[Path]:
    """Let the Trainer save a checkpoint inside the context, and publish it when every process has written its part.

    If saving fails, the checkpoints before it are kept, and the message names the newest of them.

    Args:
        arguments: Arguments of the Trainer; inside the context their `output_dir` is another directory.
        state: State of the Trainer, which names the best checkpoint.

    Yields:
        Directory that the Trainer writes the checkpoint to.
    """
    directory, name = Path(str(arguments.output_dir)), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    try:
        with written_aside(arguments) as aside:
            yield aside / name
        _name_best_by_final_place(arguments, state, directory, aside / name)
        processes.wait()  # every process writes its own random state, and the Trainer does not wait for it
        if processes.is_main():
            publish(aside / name, directory / name)
    except Exception:
        if processes.is_main():
            shutil.rmtree(directory / ASIDE, ignore_errors=True)
            kept = numbered(directory)
            say(f"{name} could not be written; {f'{kept[0].name} is kept' if kept else 'there is none before it'}.")
        raise
    if processes.is_main():  # by number: a rename keeps the time of a directory
        rotate_checkpoints(str(directory), arguments.save_total_limit, state.best_model_checkpoint)
    processes.wait()  # `load_best_model_at_end` reads the checkpoint next, in every process


def _name_best_by_final_place(
    arguments: TrainingArguments, state: TrainerState, directory: Path, written: Path
) -> None:
    """If the Trainer took the new checkpoint for the best one, name it by the place that it is about to have."""
    if state.best_model_checkpoint and Path(state.best_model_checkpoint) == written:
        state.best_model_checkpoint = str(directory / written.name)
        if arguments.should_save:
            state.save_to_json(str(written / TRAINER_STATE_NAME))


@contextlib.contextmanager
def written_aside(arguments: TrainingArguments) -> Iterator[Path]:
    """Let the Trainer write below `ASIDE` in its output directory, where its rotation finds nothing to delete."""
    directory = arguments.output_dir
    aside = Path(str(directory)) / ASIDE
    arguments.output_dir = str(aside)
    try:
        yield aside
    finally:
        arguments.output_dir = directory


def publish(written: Path, final: Path) -> None:
    """Flush a checkpoint to the disk, seal it and give it its name, in this order: a cut leaves all of it or nothing.

    Args:
        written: Directory that every process has written its part to; its parent is removed.
        final: Final place of the checkpoint, in the parent's parent.
    """
    assert written.is_dir(), f"transformers {transformers.__version__} does not write checkpoints to args.output_dir"
    for path in written.rglob("*"):
        flush(path)
    seal(written)
    if final.exists():  # the same step, saved again
        final.rename(written.with_name("replaced"))
    written.rename(final)
    flush(final.parent)
    shutil.rmtree(written.parent)


def seal(directory: Path) -> None:
    """Record the hash of every file of a checkpoint."""
    files = sorted(f for f in directory.rglob("*") if f.is_file() and f.name != SEAL)
    write_json(directory / SEAL, {str(f.relative_to(directory)): sha256_file(f) for f in files})


def corruption(directory: Path) -> str | None:
    """Reason why a checkpoint cannot be used, or None if its files match its seal."""
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


def corruption_of_best(directory: Path) -> str | None:
    """Reason why the best checkpoint before a whole one cannot be used; a run resumed here may have to load it."""
    step = json.loads((directory / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_global_step")
    best = directory.with_name(f"{PREFIX_CHECKPOINT_DIR}-{step}")
    problem = corruption(best) if step and best != directory else None
    return problem and f"the best step before it is in {best.name}, and {problem}"


def check_best(state: TrainerState) -> None:
    """Refuse to load the best weights from a corrupt checkpoint.

    Raises:
        ValueError: If the checkpoint of the best step is missing or has changed.
    """
    assert state.best_model_checkpoint is not None, "the Trainer asks for the best model only if there is one"
    best = Path(state.best_model_checkpoint)
    problem = corruption(best)
    if problem is not None:
        raise ValueError(
            f"{best.name} holds the best weights, those of step {state.best_global_step}, but {problem}. Run the same "
            "command again; it trains again from the newest checkpoint that is whole."
        )


def check_sharding(checkpoint: Path) -> None:
    """Refuse a checkpoint whose optimiser was saved by processes that shared it out otherwise than those of this run.

    Raises:
        ValueError: If it was shared out and is not now, or the other way round.
    """
    was, now = (checkpoint / OPTIMIZER_NAME_BIN).is_file(), processes.sharding() == "FSDP"
    if was != now:
        recipes = {True: "under FSDP (recipes/accelerate/fsdp2.yaml)", False: "without FSDP"}
        raise ValueError(
            f"{checkpoint.name} was written {recipes[was]} and this run was launched {recipes[now]}, which cannot read "
            f"its optimiser. Launch it {recipes[was]}, with any number of processes, or add --overwrite to begin anew."
        )


def numbered(directory: Path) -> list[Path]:
    """Checkpoints in a Trainer's output directory, the newest first."""
    found = [d for d in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if d.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=lambda d: -int(d.name.rsplit("-", 1)[1]))


def is_last(directory: Path) -> bool:
    """Tell whether training ended with a checkpoint; resumed from it, transformers 5.23 would take one step more.

    Training ends with the last step of all, or with the one at which early stopping stops it.
    """
    state = json.loads((directory / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    control = (state.get("stateful_callbacks") or {}).get("TrainerControl", {"args": {}})
    return state["global_step"] >= state["max_steps"] or control["args"].get("should_training_stop", False)


def newest_whole(directory: Path) -> Path | None:
    """Choose the newest checkpoint that is whole and is not the final one; every process gets the same.

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
        problem = corruption(path) or corruption_of_best(path)
        if problem is None and is_last(path):
            say(f"{path.name} is the final checkpoint, which cannot be resumed; resuming from the one before it.")
        elif problem is None:
            return [path.name]
        else:
            say(f"{path.name} is passed over and removed: {problem}.")
            shutil.rmtree(path)
    if unfinished or found:
        say("No checkpoint is left to continue from; training starts again.")
    return []
