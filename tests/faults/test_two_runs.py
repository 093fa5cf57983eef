"""Two runs with one --out at the same time: one of them works, the other refuses or finds its result."""

from __future__ import annotations

import time

import pytest

from tests.faults.line import COMMANDS


@pytest.mark.parametrize("delay_s", [0, 0.05, 0.3])
@pytest.mark.parametrize("stage", ["prepare", "tokenize", "sft", "evaluate"])
def test_two_runs_on_one_out(stage, delay_s, line, tmp_path):
    """The second starts while the first claims the directory, works in it, or publishes it."""
    first = line.start(stage, tmp_path)
    time.sleep(delay_s)
    second = line.start(stage, tmp_path, said="stderr of the second")
    statuses = line.forks.wait(first), line.forks.wait(second)
    said = "".join(path.read_text() for path in sorted(tmp_path.glob("stderr*")))
    assert set(statuses) <= {0, 2} and 0 in statuses, said
    assert statuses.count(2) == said.count("Another llmrec process is writing"), said
    line.check_same(stage, tmp_path)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_another_config_does_not_disturb_a_run(overwrite, line, tmp_path):
    first = line.start("sft", tmp_path)
    while not (tmp_path / "checkpoint.partial" / ".lock").exists():
        time.sleep(0.001)
    second = line.start("sft", tmp_path, more=["--seed", "1", *overwrite], said="stderr of the second")
    assert line.forks.wait(second) == 2
    assert "Another llmrec process is writing" in (tmp_path / "stderr of the second").read_text()
    assert line.forks.wait(first) == 0
    line.check_same("sft", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stage", [stage for stage in COMMANDS if stage not in ("compare", "recommend")])
def test_several_runs_on_one_out(stage, seed, line, tmp_path):
    """Four of them, as a scheduler that lost count would start them."""
    pids = []
    for _ in range(4):
        pids.append(line.start(stage, tmp_path))
        time.sleep(0.02 * seed)
    statuses = [line.forks.wait(pid) for pid in pids]
    assert set(statuses) <= {0, 2} and 0 in statuses
    line.check_same(stage, tmp_path)
