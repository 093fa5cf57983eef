"""kill -9 in any part of `llmrec alternate`: run again, it ends as if it had not been killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmrec.runtime.manifest import verify
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.sid.table import SidTable
from llmrec.training.alternate.trainer import FILE
from llmrec.training.checkpoints import SEAL, numbered
from tests.support.alternated import Line, cycles_of, flags_of
from tests.support.extended import losses, same_weights
from tests.support.forks import Forks

# With dropout, so that a lost random state shows. Epochs have three steps; passes of three follow steps 2, 4 and 6.
OPTIONS = {"save_steps": 1, "dropout": 0.1}
ALTERNATE = "llmrec.training.alternate"
# Each start of the command dies in the call of a function, counted from that start, and leaves its newest checkpoint.
DEATHS = {
    "the first pass": (f"{ALTERNATE}.tokenizer_training.clip_gradients", 2, 2),
    "the second swap": (f"{ALTERNATE}.current_sids.swap_table", 2, 4),
    "a step after a swap": (f"{ALTERNATE}.turns.clip_gradients", 1, 4),
    "saving a checkpoint": ("llmrec.training.checkpoints.seal", 2, 5),
    "the last pass, after resuming within a cycle": (f"{ALTERNATE}.tokenizer_training.clip_gradients", 2, 6),
    "a step after the restart": ("llmrec.training.checkpoints.seal", 2, 7),
    "saving the tokenizer": ("llmrec.stages.alternate.write_report", 1, 8),
}


@pytest.fixture(scope="module")
def whole(forks, turns, tmp_path_factory):
    """Runs that were not interrupted, by their options."""
    root, made = tmp_path_factory.mktemp("whole"), {}

    def of(**options) -> Path:
        name = json.dumps(options, sort_keys=True)
        if name not in made:
            made[name] = root / str(len(made))
            start(forks, turns, made[name], options)
            assert forks.wait() == 0, (root / "stderr").read_text()
        return made[name]

    return of


def start(forks: Forks, turns: Line, out: Path, options: dict, die_in: tuple[str, int] | None = None) -> None:
    argv = ["alternate", *flags_of(turns, **OPTIONS, **options), "--out", str(out)]
    forks.start(argv, out.parent / "stderr", die_in=die_in)


def assert_same(out: Path, expected: Path) -> None:
    """Loss curve, log of passes, weights, semantic IDs and tokenizer."""
    verify(out, "alternate")
    assert losses(out) == losses(expected) and cycles_of(out) == cycles_of(expected)
    assert same_weights(out, expected)
    assert SidTable.load(out).sha256 == SidTable.load(expected).sha256
    ours, theirs = (load_file(path / "sid" / "codebooks.safetensors") for path in (out, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_checkpoints_hold_llm_and_tokenizer(directory: Path) -> None:
    kept = list(directory.glob("checkpoint-*"))
    assert kept
    for path in kept:
        assert {FILE, "optimizer.pt", "scheduler.pt"} <= json.loads((path / SEAL).read_text()).keys()
        state = torch.load(path / FILE, weights_only=True)
        assert state.keys() >= {"tokenizer", "optimizer", "scheduler", "adapters", "codes", "codebooks", "cycle"}


def test_killed_in_every_phase(forks, turns, whole, tmp_path):
    """One run that dies again and again: each checkpoint that it resumes from was itself written after resuming."""
    out, checkpoints = tmp_path / "out", tmp_path / "out.partial" / SCRATCH / "trainer"
    for phase, (function, call, newest) in DEATHS.items():
        start(forks, turns, out, {}, (function, call))
        assert forks.wait() == -signal.SIGKILL and not out.exists(), phase
        assert_checkpoints_hold_llm_and_tokenizer(checkpoints)
        assert numbered(checkpoints)[0].name == f"checkpoint-{newest}", phase
    start(forks, turns, out, {})
    assert forks.wait() == 0, (tmp_path / "stderr").read_text()
    assert_same(out, whole())


@pytest.mark.parametrize(
    "options", [{"train": "full", "optimization": "joint"}, {"eval_steps": 2}], ids=lambda options: str([*options])
)
def test_killed_after_a_swap_with(options, forks, turns, whole, tmp_path):
    out = tmp_path / "out"
    start(forks, turns, out, options, ("llmrec.training.checkpoints.seal", 2 if "eval_steps" in options else 5))
    assert forks.wait() == -signal.SIGKILL
    start(forks, turns, out, options)
    assert forks.wait() == 0, (tmp_path / "stderr").read_text()
    assert_same(out, whole(**options))
