"""Any baseline by its name, counted or trained, or by the directory in which `llmrec teach` has kept it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from llmrec.baselines.checks import check_trainable
from llmrec.baselines.counted import COUNTED_BASELINES, Popularity
from llmrec.baselines.networks import NETWORKS, NeuralRanker
from llmrec.baselines.taught import Taught, load_ranker
from llmrec.configs.evaluate import BASELINES
from llmrec.configs.options import suggestion
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import PARTIAL


def rows_of(baselines: Sequence[str]) -> dict[str, str]:
    """Row of a table -> the name or directory of its baseline; the row of a directory has the name of the directory."""
    return {name if name in BASELINES else Path(name).name: name for name in baselines}


def baseline_problems(baselines: Sequence[str], taken: Collection[str]) -> list[str]:
    """Sentences about names that are no baselines, and about rows that would share a name.

    Args:
        baselines: Names and directories.
        taken: Names of the other rows.
    """
    problems, rows = [], Counter(row for name in baselines for row in rows_of([name]))
    for name in baselines:
        is_directory = Path(name).is_dir() or Path(f"{name}{PARTIAL}").is_dir()
        if name not in BASELINES and not is_directory and len(Path(name).parts) > 1:
            problems.append(f"baseline '{name}' does not exist; give a directory written by `llmrec teach`")
        elif name not in BASELINES and not is_directory:
            near = suggestion(name, BASELINES)
            problems.append(f"unknown baseline '{name}'; {near} A directory of `llmrec teach` may stand there, too")
    problems += [
        f"'baselines' has {count} rows called '{row}': {list(baselines)}; give each once, or rename a directory"
        for row, count in rows.items()
        if count > 1
    ]
    problems += [f"'{row}' is the name of another row; rename the directory" for row in rows if row in taken]
    return problems


def check_baselines(baselines: Sequence[str], catalog: Catalog) -> None:
    """Refuse baselines that cannot be trained on a catalogue, or were kept for another one.

    Raises:
        ValueError: If one is.
    """
    for name in baselines:
        if name in NETWORKS:
            check_trainable(name, catalog)
        elif name not in BASELINES:
            load_ranker(name, catalog, torch.device("cpu"))


def named_baseline(name: str, catalog: Catalog, seed: int, device: str) -> Popularity | NeuralRanker | Taught:
    """Fit a baseline, or load one that was kept; arguments as for `baseline`, and `name` may be a directory."""
    if name in BASELINES:
        return baseline(name, catalog, seed, device)
    return load_ranker(name, catalog, resolve_device(device))


def baseline(
    name: str,
    catalog: Catalog,
    seed: int = 0,
    device: str = "auto",
    **options: Any,  # the class of the ranker checks them
) -> Popularity | NeuralRanker:
    """Fit a baseline to the training sequences of a catalogue.

    Args:
        name: One of `llmrec.configs.evaluate.BASELINES`.
        catalog: Catalogue whose training sequences are learned; its valid examples decide the epoch of a trained
            baseline.
        seed: Seed of a trained baseline.
        device: Device of the baseline: auto, cpu or cuda.
        options: Fields of the options of its class, such as `hidden`.

    Raises:
        ValueError: If a trained baseline finds no valid examples, nothing to learn from, or no side field.
    """
    if name in COUNTED_BASELINES:
        return COUNTED_BASELINES[name](catalog, device, **options)
    return NeuralRanker(NETWORKS[name], catalog, seed, device, **options)
