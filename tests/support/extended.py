"""A catalogue whose next item can be learned, and the tiny LLMs that extend and sft leave for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.configs import ExtendConfig, SftConfig, TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.stages import extend, sft
from tests.conftest import TITLES, tiny_llm, word_tokenizer
from tests.support.prepared import write_catalog

NUM_USERS = 21


def toy_sequences() -> list[list[int]]:
    """Item rows of users who walk round the catalogue in steps of one, from every start, for 4 to 9 items."""
    return [[(user + step) % 12 for step in range(4 + user % 6)] for user in range(NUM_USERS)]


def write_toy_catalog(path: Path) -> Catalog:
    """Leave-one-out split of `toy_sequences`, titles of the shared catalogue."""
    item_ids = [f"item-{row}" for row in range(12)]
    rows = []
    for user, items in enumerate(toy_sequences()):
        ids = [item_ids[i] for i in items]
        for name, back in (("train", 3), ("valid", 2), ("test", 1)):
            end = len(ids) - back
            rows.append({"user_id": f"user-{user}", "split": name, "history": ids[:end], "target": ids[end]})
    split = pa.Table.from_pylist(rows)
    return write_catalog(path, pa.table({"item_id": item_ids, "title": TITLES, "text": TITLES}), split)


def write_sid(path: Path, table: SidTable) -> Path:
    def build(workdir: Path) -> None:
        table.save(workdir)

    return run_stage("tokenize", TokenizeConfig(out=str(path), catalog="c", views="v"), {}, build)


def write_llm(path: Path, architecture: str = "qwen3", tied: bool = True, dtype=None) -> Path:
    """A tiny LLM and its word tokenizer, as a user would bring them."""
    tokenizer = word_tokenizer()
    tiny_llm(len(tokenizer), architecture, tied).to(dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def extended(
    root: Path, table: SidTable, architecture: str = "qwen3", tied: bool = True, dtype=None, **options
) -> Path:
    """Output of the extend stage on a tiny LLM of its own, below `root`."""
    llm = write_llm(root / "llm", architecture, tied, dtype)
    sid = write_sid(root / "sid", table)
    return Path(extend.main(ExtendConfig(out=str(root / "base"), sid=str(sid), model=str(llm), **options))["out"])


def sft_config(out: Path, catalog: str | Path, model: Path, **options) -> SftConfig:
    """Four optimiser steps of 8 sequences on the CPU, without dropout, unless told otherwise."""
    defaults = {"max_steps": 4, "batch_size": 8, "max_history": 4, "lora_rank": 4,
                "warmup_steps": 0, "logging_steps": 1, "save_steps": 1000, "device": "cpu"}  # fmt: skip
    return SftConfig(out=str(out), catalog=str(catalog), model=str(model), **{**defaults, **options})


def fine_tune(out: Path, catalog: str | Path, model: Path, **options) -> dict:
    return sft.main(sft_config(out, catalog, model, **options))


def weights_of(directory: Path) -> dict:
    """Tensors of a saved model by name."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(
        np.array_equal(first[name].float().numpy(), second[name].float().numpy()) for name in first
    )


def losses(out: Path) -> list[float]:
    """Loss curve of a finished run."""
    return [entry["loss"] for entry in json.loads((out / "training_log.json").read_text()) if "loss" in entry]
