"""SIGKILL at random moments of every stage: the result is whole or absent, and run again it is the undisturbed one."""

from __future__ import annotations

import signal

import pytest

from tests.faults.line import STAGES, kill

SEEDS = 15  # kills of each stage in the long run


@pytest.mark.parametrize("stage", STAGES)
def test_killed(stage, line, tmp_path):
    kill(line, stage, 0, tmp_path / "run")


def test_whole_shards_are_kept(line, tmp_path):
    """Killed while a shard is answered, while one is written, and after the last; each run makes what is missing."""
    deaths = {"stages.recommend_users.write_shard": (3, 2), "runtime.disk.flush": (3, 2),
              "stages.recommend_users.counts_in": (1, None)}  # fmt: skip
    partial, before = tmp_path / "recs.partial", {}
    for function, (call, kept) in deaths.items():
        line.start("users", tmp_path, die_in=(f"llmrec.{function}", call))
        assert line.forks.wait() == -signal.SIGKILL and not (tmp_path / "recs").exists(), function
        left = {path.name: path.stat().st_mtime_ns for path in partial.glob("part-*.parquet")}
        assert len(left) == (kept or len(list((line.root / "recs").glob("*.parquet"))))
        assert before.items() <= left.items()
        assert (partial / "part-00002.parquet.tmp").exists() == (function == "runtime.disk.flush")
        before = left
    line.finish("users", tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "recs").glob("*.parquet")} == before


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_more_moments(stage, line, tmp_path):
    for seed in range(1, SEEDS):
        kill(line, stage, seed, tmp_path / "run")
