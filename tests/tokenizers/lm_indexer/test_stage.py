"""LMIndexer by the commands: embed, tokenize, then new items in append mode."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from llmrec.cli import main
from llmrec.sid.table import SidTable
from tests.support.clustered import SPLIT
from tests.support.prepared import run_json, write_catalog
from tests.tokenizers.lm_indexer.planted import texts, write_encoder

OPTIONS = {
    "num-levels": 2, "codebook-size": 4, "latent-dim": 16, "max-tokens": 16, "warm-up-epochs": 1, "max-epochs": 1,
}  # fmt: skip


def test_the_commands_give_codes_and_append_new_items(capsys, tmp_path):
    lines = texts()[:60]
    encoder = write_encoder(tmp_path / "encoder", lines)
    for name, each in (("old", lines), ("new", [*lines, lines[7]])):
        ids = [str(row) for row in range(len(each))]
        write_catalog(tmp_path / name, pa.table({"item_id": ids, "title": each, "text": each}), SPLIT)
        flags = ["--views", "text", "--text-encoder", encoder, "--device", "cpu", "--out", tmp_path / f"{name}-views"]
        run_json(capsys, "embed", "--catalog", tmp_path / name, *flags)
    made = [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]
    paths = {name: ["--catalog", tmp_path / name, "--views", tmp_path / f"{name}-views"] for name in ("old", "new")}
    shared = ["--method", "lm_indexer", "--device", "cpu", "--allow-collapse"]
    report = run_json(capsys, "tokenize", *paths["old"], *shared, *made, "--out", tmp_path / "sid")
    assert report["method"] == "lm_indexer" and report["learned_levels"] == 2
    assert len(json.loads((tmp_path / "sid" / "report.json").read_text())["training"]) == 2
    more = ["--append", tmp_path / "sid", "--device", "cpu", "--out", tmp_path / "more"]
    run_json(capsys, "tokenize", *paths["new"], *more)
    before, after = SidTable.load(tmp_path / "sid"), SidTable.load(tmp_path / "more")
    np.testing.assert_array_equal(after.codes(np.arange(60)), before.codes(np.arange(60)))
    assert after.codes([60])[0, :2].tolist() == before.codes([7])[0, :2].tolist(), "one text, one prefix"


def test_tfidf_is_refused_with_what_to_run(capsys, tmp_path):
    lines = texts()[:20]
    ids = [str(row) for row in range(20)]
    write_catalog(tmp_path / "catalog", pa.table({"item_id": ids, "title": lines, "text": lines}), SPLIT)
    flags = ["--views", "text", "--text-encoder", "tfidf", "--out", tmp_path / "views"]
    run_json(capsys, "embed", "--catalog", tmp_path / "catalog", *flags)
    paths = ["--catalog", tmp_path / "catalog", "--views", tmp_path / "views", "--out", tmp_path / "sid"]
    assert main([str(part) for part in ["tokenize", *paths, "--method", "lm_indexer"]]) == 2
    assert (
        "Run `llmrec embed --views text --text-encoder` with a sentence-transformers model" in capsys.readouterr().err
    )
