"""Ray Data and Spark give the answers of the local job; they are installed for this alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.prepared import run_json

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "batch.md").read_text(encoding="utf-8"), flags=re.DOTALL)
NUM_USERS = 60
pytestmark = pytest.mark.slow


@pytest.fixture
def local(tuned, tmp_path, capsys) -> list[dict]:
    """Answers of the local job, by user."""
    ids = [f"item-{row}" for row in range(12)]
    histories = [
        [ids[(user + step) % 12] for step in range(user % 7)] + ["gone"] * (user % 2) for user in range(NUM_USERS)
    ]
    users = pa.table({"user_id": pa.array(range(NUM_USERS), pa.int64()), "history": histories})
    pq.write_table(users, tmp_path / "users.parquet")
    argv = [
        "recommend",
        "--model",
        tuned,
        "--users",
        tmp_path / "users.parquet",
        "--out",
        tmp_path / "local",
        "--k",
        10,
    ]
    run_json(capsys, *argv, "--unknown", "skip", "--shard-size", 16, "--device", "cpu")
    return answers_in(tmp_path / "local")


def answers_in(directory: Path) -> list[dict]:
    rows = pa.concat_tables([pq.read_table(path) for path in directory.glob("*.parquet")]).to_pylist()
    return sorted(rows, key=lambda row: row["user_id"])


def run_block(block: str, tuned, directory: Path, **names) -> dict:
    """Run a block of the page on the files of a test."""
    for name in ("users.parquet", "recs"):
        block = block.replace(f'"{name}"', repr(str(directory / name)))
    block = block.replace('"run/checkpoint"', f'{str(tuned)!r}, device="cpu"').replace("4096", "16")
    exec(compile(block, "batch.md", "exec"), names)
    return names


def same(found: list[dict], expected: list[dict]) -> None:
    """All but the last digits of scores, as the batches differ."""
    assert len(found) == NUM_USERS
    for ours, theirs in zip(found, expected, strict=True):
        assert [item.pop("score") for item in ours["items"]] == pytest.approx(
            [item.pop("score") for item in theirs["items"]], abs=1e-5
        )
        assert ours == theirs


def test_ray_data_gives_the_answers_of_the_local_job(tuned, local, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install llmrec[ray]")
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    # Four logical CPUs: two for the workers, and some for reading and writing.
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": environment})
    try:
        run_block(next(block for block in BLOCKS if "import ray" in block), tuned, tmp_path)
    finally:
        ray.shutdown()
    same(answers_in(tmp_path / "recs"), local)


def test_spark_gives_the_answers_of_the_local_job(tuned, local, tmp_path):
    sql = pytest.importorskip("pyspark.sql", reason="Spark is not installed: pip install pyspark, and Java")
    spark = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    names = run_block(next(block for block in BLOCKS if "frames" in block), tuned, tmp_path, __name__="__main__")
    try:
        run_block(next(block for block in BLOCKS if "mapInPandas" in block), tuned, tmp_path, spark=spark, **names)
    finally:
        spark.stop()
    same(answers_in(tmp_path / "recs"), local)
