"""Inputs of `llmrec alternate`: a small catalogue, ETEGRec's tokenizer fitted on it, and an extended LLM."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmrec.configs import AlternateConfig, EmbedConfig, ExtendConfig, TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.stage_directory import run_stage
from llmrec.stages import alternate, extend, tokenize
from llmrec.views import ItemViews, View, describe
from tests.support.extended import write_llm, write_toy_catalog

LEVELS, CODES, DIM = 2, 6, 6
# 21 users: an epoch is 3 steps of 8. After steps 2, 4 and 6 of 8 comes a pass; the tokenizer is frozen after the last.
STEPS_PER_EPOCH = 3
SMALL = {"epochs": 8 / STEPS_PER_EPOCH, "batch_size": 8, "max_history": 5, "lora_rank": 4, "warmup_steps": 0,
         "logging_steps": 1, "save_steps": 1000, "device": "cpu", "learning_rate": 1e-3, "cycle_steps": 2,
         "align_after": 0.1, "freeze_after": 0.8, "sia_weight": 0.1, "psa_weight": 0.1,
         "tokenizer_learning_rate": 2e-2}  # fmt: skip
# Half as many steps: after steps 1, 2 and 3 of 4 comes a pass.
SHORT = {"epochs": 4 / STEPS_PER_EPOCH, "cycle_steps": 1}
# `llmrec sft` with the steps of SMALL.
SFT = {"max_steps": 8, **{name: SMALL[name] for name in ("batch_size", "max_history", "learning_rate")}}


@dataclass(frozen=True)
class Line:
    """Input directories of `llmrec alternate`."""

    catalog: str
    views: str
    sid: str
    model: str


def write_views(
    path: Path, catalog: Catalog, seed: int = 0, missing: tuple[int, ...] = (), name: str = "sasrec"
) -> str:
    """Write vectors that are near each other for items that follow one another in the toy sequences."""
    angle_N = torch.arange(catalog.num_items) * 2 * torch.pi / catalog.num_items
    noise = torch.randn(catalog.num_items, DIM - 2, generator=torch.Generator().manual_seed(seed))
    vectors = torch.cat([angle_N.sin()[:, None], angle_N.cos()[:, None], 0.5 * noise], dim=1).numpy()
    is_missing = np.isin(np.arange(catalog.num_items), missing)
    vectors[is_missing] = 0

    def build(workdir: Path) -> None:
        ItemViews({name: View(vectors, is_missing, describe(name, catalog))}).save(workdir)

    return str(
        run_stage("embed", EmbedConfig(out=str(path), catalog=catalog.source), {"catalog": catalog.source}, build)
    )


def write_sid(path: Path, catalog: str, views: str, method: str = "etegrec", **options) -> str:
    sizes = {"num_levels": LEVELS, "codebook_size": CODES, "encoder_layers": [16], "latent_dim": 8, "max_epochs": 40}
    stage = {name: options.pop(name) for name in ("collision", "seed") if name in options}
    given = {**(sizes if method == "etegrec" else {}), **options}
    config = TokenizeConfig(
        out=str(path), catalog=catalog, views=views, device="cpu", method=method, options=given, **stage
    )
    return tokenize.main(config)["out"]


def write_line(root: Path, **options) -> Line:
    """Run the stages before alternate, below `root`."""
    catalog = write_toy_catalog(root / "catalog")
    views = write_views(root / "views", catalog, **options)
    sid = write_sid(root / "sid", catalog.source, views)
    model = extend.main(ExtendConfig(out=str(root / "base"), sid=sid, model=str(write_llm(root / "llm"))))["out"]
    return Line(catalog.source, views, sid, model)


def alternate_config(out: Path, line: Line, **options) -> AlternateConfig:
    return AlternateConfig(out=str(out), **{**vars(line), **SMALL, **options})


def run(out: Path, line: Line, **options) -> dict:
    return alternate.main(alternate_config(out, line, **options))


def log_of(out: Path) -> list[dict]:
    return json.loads((out / "training_log.json").read_text())


def cycles_of(out: Path) -> list[dict]:
    """Log entries of cycles."""
    return [entry for entry in log_of(out) if "cycle" in entry]


def flags_of(line: Line, **options) -> list[str]:
    given = {**vars(line), **SMALL, **options}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
