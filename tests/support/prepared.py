"""A catalogue directory as `llmrec prepare` leaves it, from tables in memory, and a run of the command on it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import Dataset

from llmrec.cli import main
from llmrec.configs import PrepareConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.stage_directory import run_stage


def write_catalog(
    path: Path, items: pa.Table, split: pa.Table | Dataset, inputs: dict[str, str] | None = None
) -> Catalog:
    def build(workdir: Path) -> None:
        pq.write_table(items, workdir / "items.parquet")
        pq.write_table(split if isinstance(split, pa.Table) else split.to_table(), workdir / "split.parquet")

    run_stage("prepare", PrepareConfig(out=str(path)), inputs or {}, build)
    return Catalog.load(path)


def run_json(capsys, *argv: object) -> dict:
    """Result of a stage run through the command line with --json."""
    capsys.readouterr()
    assert main([str(part) for part in argv] + ["--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)
