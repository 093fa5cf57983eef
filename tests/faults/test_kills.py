"""SIGKILL at random moments of every stage: the result is whole or absent, and run again it is the undisturbed one."""

from __future__ import annotations

import pytest

from tests.faults.line import STAGES, kill

SEEDS = 15  # kills of each stage in the long run


@pytest.mark.parametrize("stage", STAGES)
def test_killed(stage, line, tmp_path):
    kill(line, stage, 0, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_more_moments(stage, line, tmp_path):
    for seed in range(1, SEEDS):
        kill(line, stage, seed, tmp_path / "run")
