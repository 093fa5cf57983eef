"""kill -9 and a full disk in every stage: afterwards `out` is whole or absent, and the same command finishes the work.

The kills are real: each command runs in a process of its own, and a seeded moment within the time that the stage has a
`.partial` directory is when it dies.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from llmrec.baselines.taught import TENSORS
from llmrec.runtime.manifest import MANIFEST, content_hash, verify
from tests.support.forks import Forks

LINE = {
    "prepare": "--dataset simulated:60x30 --k-core 3",
    "embed": "--catalog catalog --text-encoder tfidf --collaborative-dim 4",
    "tokenize": "--catalog catalog --views views --codebook-size 4 --num-levels 2 --device cpu",
    "extend": "--sid sid --model micro --catalog catalog --micro-hidden 32 --micro-layers 1",
    "teach": "--catalog catalog --ranker gru4rec --hidden 16 --max-epochs 3 --device cpu",
    "sft": "--catalog catalog --model base --train full --max-steps 6 --save-steps 1 --batch-size 8 "
    "--micro-batch-size 8 --max-history 6 --warmup-steps 0 --device cpu",
    "dpo": "--catalog catalog --model checkpoint --max-steps 6 --save-steps 1 --batch-size 8 --micro-batch-size 8 "
    "--warmup-steps 0 --device cpu",
    "grpo": "--catalog catalog --model checkpoint --max-steps 6 --save-steps 1 --batch-size 8 --micro-batch-size 8 "
    "--num-generations 4 --warmup-steps 0 --device cpu",
    "evaluate": "--catalog catalog --model checkpoint --max-examples 8 --device cpu",
}
OUT = dict(
    zip(
        LINE,
        ("catalog", "views", "sid", "base", "ranker", "checkpoint", "preferred", "reinforced", "eval"),
        strict=True,
    )
)
KILLS = 3  # per stage
# Smallest and largest file a stage may write before the disk is "full": the first result file, and a later one.
FULL_AT = {"prepare": (1_000, 4_500), "embed": (500,), "tokenize": (600,), "extend": (1_500, 20_000), "teach": (1_000,),
           "sft": (1_500, 20_000, 60_000), "dpo": (1_500, 60_000), "grpo": (60_000,), "evaluate": (1_000,)}  # fmt: skip


@pytest.fixture(scope="module")
def line(forks, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """Every stage run to its end once, and for how many seconds each had a partial directory."""
    root, seconds = tmp_path_factory.mktemp("line"), {}
    for stage in LINE:
        start(forks, stage, root, root / OUT[stage])
        while not partial(root / OUT[stage]).exists() and not (root / OUT[stage]).exists():
            time.sleep(0.001)
        started = time.monotonic()
        assert forks.wait() == 0, (root / "stderr").read_text()
        seconds[stage] = time.monotonic() - started
    return root, seconds


def start(forks: Forks, stage: str, line: Path, out: Path, limit: int | None = None) -> int:
    flags = [str(line / part) if part in OUT.values() else part for part in LINE[stage].split()]
    return forks.start([stage, *flags, "--out", str(out)], out.parent / "stderr", limit)


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def assert_same_result(stage: str, out: Path, reference: Path) -> None:
    """What a stage decides is the same; teach, sft, dpo, grpo and evaluate also record how long they took."""
    verify(out, stage)
    assert not partial(out).exists()
    if stage in ("prepare", "embed", "tokenize", "extend"):
        assert content_hash(out) == content_hash(reference)
    if stage == "teach":
        assert (out / TENSORS).read_bytes() == (reference / TENSORS).read_bytes()
    if stage in ("sft", "dpo", "grpo"):
        weights, expected = load_file(out / "model.safetensors"), load_file(reference / "model.safetensors")
        assert all((weights[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize("stage", LINE)
@pytest.mark.parametrize("kill", range(KILLS))
def test_kill(stage, kill, forks, line, tmp_path):
    reference, seconds = line
    out = tmp_path / OUT[stage]
    pid = start(forks, stage, reference, out)
    while not partial(out).exists():
        time.sleep(0.0005)
    time.sleep(random.Random(f"{stage} {kill}").uniform(0, 0.9) * seconds[stage])
    os.kill(pid, signal.SIGKILL)
    died = forks.wait() == -signal.SIGKILL
    if out.exists():  # it was faster than the kill, or died in its very last step
        verify(out, stage)
    else:
        assert died and partial(out).is_dir()
    start(forks, stage, reference, out)
    assert forks.wait() == 0, (tmp_path / "stderr").read_text()
    assert_same_result(stage, out, reference / OUT[stage])


@pytest.mark.parametrize(("stage", "limit"), [(stage, limit) for stage in FULL_AT for limit in FULL_AT[stage]])
def test_full_disk(stage, limit, forks, line, tmp_path):
    reference, _ = line
    out = tmp_path / OUT[stage]
    start(forks, stage, reference, out, limit)
    assert forks.wait() == 2
    message = (tmp_path / "stderr").read_text()
    assert f"{partial(out)}: " in message and "Free some space" in message and "run the same command again" in message
    assert "Traceback" not in message
    assert not out.exists() and not (partial(out) / MANIFEST).exists()
    start(forks, stage, reference, out)
    assert forks.wait() == 0, (tmp_path / "stderr").read_text()
    assert_same_result(stage, out, reference / OUT[stage])
