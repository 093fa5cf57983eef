"""Trainer checkpoints that are known to be whole.

The Trainer writes a checkpoint into its final directory and later takes the highest number unchecked: after a kill in
the middle of a save, or with a flipped bit, it resumes silently with other weights. Here each finished checkpoint is
sealed by a list of its files' hashes, and only a sealed one whose files still match is resumed from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llmrec import processes
from llmrec.manifest import sha256_file, write_json

SEAL = "llmrec_seal.json"


class SealCheckpoints(TrainerCallback):
    """Seal each checkpoint once the Trainer has written it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        processes.wait()  # every process writes its own random state, and nothing in the Trainer waits for it
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def seal(directory: Path) -> None:
    """Record the hash of every file of a finished checkpoint."""
    files = sorted(f for f in directory.rglob("*") if f.is_file() and f.name != SEAL)
    write_json(directory / SEAL, {str(f.relative_to(directory)): sha256_file(f) for f in files})


def is_whole(directory: Path) -> bool:
    """Whether a checkpoint was sealed and its files are unchanged since."""
    try:
        hashes = json.loads((directory / SEAL).read_text(encoding="utf-8"))
        return all(sha256_file(directory / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_whole(output_dir: Path, remove_others: bool) -> Path | None:
    """The newest checkpoint that is whole; newer broken ones are removed where asked, so that none is taken later."""
    found = [d for d in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if d.name.rsplit("-", 1)[1].isdigit()]
    for directory in sorted(found, key=lambda d: -int(d.name.rsplit("-", 1)[1])):
        if is_whole(directory):
            return directory
        if remove_others:
            shutil.rmtree(directory)
    return None
