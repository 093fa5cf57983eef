"""kill -9 in any part of `llmrec alternate`: run again, it ends as if it had not been killed."""

from __future__ import annotations

import itertools
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
from llmrec.training.checkpoints import SEAL
from tests.support.alternated import Line, cycles_of, flags_of
from tests.support.extended import losses, same_weights
from tests.support.forks import Forks

# With dropout, so that a lost random state shows. Epochs have three steps; passes of three follow steps 2, 4 and 6.
OPTIONS = {"save_steps": 1, "dropout": 0.1}
# `clip_gradients` is called once in each step of a pass, and once in each step of the LLM.
MOMENTS = {
    "the first pass": ("llmrec.training.alternate.tokenizer_training.clip_gradients", 2),
    "the swap": ("llmrec.training.alternate.current_sids.swap_table", 2),
    "a step after a swap": ("llmrec.training.alternate.turns.clip_gradients", 5),
    "the last pass": ("llmrec.training.alternate.tokenizer_training.clip_gradients", 8),
    "saving the tokenizer": ("llmrec.stages.alternate.write_report", 1),
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


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in(moment, forks, turns, whole, tmp_path):
    out = tmp_path / "out"
    start(forks, turns, out, {}, MOMENTS[moment])
    assert forks.wait() == -signal.SIGKILL and not out.exists()
    assert_checkpoints_hold_llm_and_tokenizer(tmp_path / "out.partial" / SCRATCH / "trainer")
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


def test_killed_again_and_again(forks, turns, whole, tmp_path):
    """Each time after two more steps: what is resumed from was itself resumed."""
    out = tmp_path / "out"
    for attempt in itertools.count(1):
        start(forks, turns, out, {}, ("llmrec.training.checkpoints.seal", 3))
        if forks.wait() == 0:
            break
        assert attempt < 5, (tmp_path / "stderr").read_text()
    assert attempt > 3
    assert_same(out, whole())
