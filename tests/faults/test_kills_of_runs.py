"""SIGKILL at random moments of `llmrec quickstart` and `llmrec run`: the same command ends as if it had lived."""

from __future__ import annotations

import pytest

from tests.faults.whole_runs import COMMANDS, WholeRun


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_runs_end_as_undisturbed_ones(name, forks, tmp_path):
    run = WholeRun(forks, name, tmp_path)
    for seed in range(3):
        run.kill(seed)
