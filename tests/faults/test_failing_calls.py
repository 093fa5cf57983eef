"""Files that cannot be written: the message names the file and the true cause, and run again the result is right."""

from __future__ import annotations

import errno

import pytest

from tests.faults.failures import CALLS, CAN_FILTER
from tests.faults.line import STAGES, fail, random_fault

SEEDS = 15  # failures of each stage in the long run
CAUSES = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE, errno.EROFS)


@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_call(stage, line, tmp_path):
    fail(line, stage, random_fault(line, stage, 0), tmp_path / "run")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cause", CAUSES, ids=errno.errorcode.get)
def test_each_call_names_each_cause(call, cause, line, tmp_path):
    fault = {"call": call, "errno": cause, "number": 1 if call == "mkdir" else 2}
    assert fail(line, "tokenize", fault, tmp_path / "run") == "told"


@pytest.mark.skipif(not CAN_FILTER, reason="needs seccomp on x86-64")
@pytest.mark.parametrize("cause", CAUSES, ids=errno.errorcode.get)
@pytest.mark.parametrize("stage", ["prepare", "embed", "extend", "teach"])
def test_each_library_that_writes_names_each_cause(stage, cause, line, tmp_path):
    """polars, safetensors, transformers and torch; every write fails from the start."""
    assert fail(line, stage, {"call": "write", "errno": cause, "after_s": 0}, tmp_path / "run") == "told"


@pytest.mark.parametrize(("stage", "limit"), [("prepare", 4_500), ("sft", 1_500), ("sft", 60_000), ("evaluate", 1_000)])
def test_a_limit_of_the_size_of_files(stage, limit, line, tmp_path):
    """In a checkpoint torch meets it, which names no cause."""
    assert fail(line, stage, {"bytes": limit}, tmp_path / "run") == "told"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_more_failing_calls(stage, line, tmp_path):
    for seed in range(1, SEEDS):
        fail(line, stage, random_fault(line, stage, seed), tmp_path / "run")
