"""Runs of `llmrec evaluate` beside each other: same rows, same cut-offs, differences paired over users.

What is compared is one system of each run, ours or a baseline, from per_user.parquet. Runs that were given one name are
taken as one system with several training seeds: a row's value is the mean over them, so that the interval speaks of
other users, and the standard deviation beside it of other seeds.

Shapes: n rows, V metrics.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.configs.evaluate import TRAINED
from llmrec.data import columns
from llmrec.evaluation.bootstrap import interval, paired_difference
from llmrec.evaluation.metrics import Position, per_row
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.report import OURS
from llmrec.runtime.console import table
from llmrec.runtime.manifest import JsonObject, read_manifest, verify

METRICS = ("recall", "ndcg")


@dataclass(frozen=True)
class Run:
    """One finished evaluation.

    Attributes:
        name: Of its system; runs of one name are seeds of it.
        path: Its directory.
        identity: Of its manifest: resolved config and hashes of its inputs.
        trained: Identity of what made the checkpoint, or None where that is not known.
        system: What is compared: ours, or one of the run's baselines.
    """

    name: str
    path: str
    identity: JsonObject
    trained: JsonObject | None
    system: str = OURS

    @classmethod
    def load(cls, name: str, path: str, system: str = OURS) -> Run:
        """Check the directory and read what it says of itself.

        Raises:
            ValueError: If it is no whole result of `llmrec evaluate`, or has no such system.
        """
        verify(path, "evaluate")
        identity = read_manifest(path)["identity"]
        if not {"config", "inputs"} <= identity.keys():
            raise ValueError(f"'{path}' does not say how it was evaluated; give the --out of `llmrec evaluate` itself.")
        systems = [OURS, *identity["config"]["baselines"]]
        if system not in systems:
            raise ValueError(f"'{path}' has no system '{system}'; it has {', '.join(systems)}.")
        metrics = json.loads((Path(path) / "metrics.json").read_text(encoding="utf-8"))
        return cls(name, path, identity, metrics.get("trained"), system)

    def setting(self, key: str) -> Any:
        value = self.identity["config"].get(key)
        return sorted(value) if isinstance(value, list) else value

    def input(self, key: str) -> str | None:
        return self.identity["inputs"].get(key)

    def positions(self) -> tuple[dict[str, Position], tuple[list, ...]]:
        """Where the targets stand in each column, and what says which rows these are."""
        lines = pq.read_table(Path(self.path) / "per_user.parquet", filters=pc.field("system") == self.system)
        by_column = {column: lines.filter(pc.equal(lines["column"], column)) for column in COLUMNS}
        found = {
            column: Position(*(part[name].to_numpy() for name in Position._fields))
            for column, part in by_column.items()
        }
        first = by_column[COLUMNS[0]]
        return found, tuple(first[name].to_pylist() for name in (columns.USER_ID, "row", columns.TARGET))


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that did not measure the same thing, and seeds of one name that are more than seeds.

    Raises:
        ValueError: With every difference.
    """
    first, problems = runs[0], []
    for run in runs[1:]:
        for key, remedy in (("split", "--split"), ("k", "--k"), ("max_rows", "--max-rows")):
            if run.setting(key) != first.setting(key):
                difference = f"{key} is {first.setting(key)} in '{first.path}', {run.setting(key)} in '{run.path}'"
                problems.append(f"{difference}; evaluate both with one {remedy}")
        if run.input("catalog") != first.input("catalog"):
            problems.append(f"'{first.path}' and '{run.path}' were evaluated on different catalogues")
        sampled = first.setting("max_rows") is not None and run.setting("max_rows") is not None
        if sampled and run.setting("seed") != first.setting("seed"):
            seeds = f"{first.setting('seed')} in '{first.path}', {run.setting('seed')} in '{run.path}'"
            problems.append(f"the seed that drew the rows is {seeds}; evaluate both with one --seed")
    for name in dict.fromkeys(run.name for run in runs):
        problems += seed_problems([run for run in runs if run.name == name])
    if problems:
        raise ValueError("These runs cannot be compared: " + "; ".join(problems) + ".")


def seed_problems(runs: Sequence[Run]) -> list[str]:
    """Why runs of one name are not one system trained with different seeds; empty where they are."""
    systems = dict.fromkeys(run.system for run in runs)
    if len(systems) > 1:
        return [f"the name '{runs[0].name}' is given to {' and '.join(systems)}; give each system one of its own"]
    return _checkpoint_problems(runs) if runs[0].system == OURS else _baseline_problems(runs)


def _baseline_problems(runs: Sequence[Run]) -> list[str]:
    """Why runs of a baseline are not of trainings with different seeds."""
    seeds: dict[int, str] = {}
    problems = []
    for run in runs:
        seed, what = run.setting("seed"), f"share the name '{run.name}' and {run.system}"
        if seed in seeds:
            problems.append(f"'{seeds[seed]}' and '{run.path}' {what} of one seed, {seed}")
        elif seeds and run.system not in TRAINED:
            problems.append(f"'{runs[0].path}' and '{run.path}' {what}, which is counted and has no seed; give it once")
        seeds.setdefault(seed, run.path)
    return problems


def _checkpoint_problems(runs: Sequence[Run]) -> list[str]:
    """Why runs of ours are not of one training with different seeds."""
    first, problems = runs[0], []
    checkpoints: dict[str | None, str] = {}
    for run in runs if len(runs) > 1 else ():
        together = f"'{first.path}' and '{run.path}' share the name '{run.name}' but"
        if run.trained is None:
            problems.append(f"'{run.path}' shares the name '{run.name}' but does not say how its checkpoint was made")
        elif first.trained is not None and (what := training_difference(first.trained, run.trained)):
            problems.append(f"{together} differ in more than the training seed: {what}")
        if run.input("model") in checkpoints:
            of_same = checkpoints[run.input("model")]
            problems.append(f"'{of_same}' and '{run.path}' share the name '{run.name}' and are of one checkpoint")
        checkpoints.setdefault(run.input("model"), run.path)
    return problems


def training_difference(a: JsonObject, b: JsonObject) -> str:
    """The settings and inputs, other than the seed, in which two checkpoints differ; empty where there are none."""
    if a["stage"] != b["stage"]:
        return f"one is of `llmrec {a['stage']}`, one of `llmrec {b['stage']}`"
    found = []
    for part in ("config", "inputs"):
        left, right = a.get(part, {}), b.get(part, {})
        for key in sorted({*left, *right} - {"seed"}):
            if left.get(key) != right.get(key):
                values = f"{key} is {left.get(key)!r} and {right.get(key)!r}"
                found.append(values if part == "config" else f"the {key} that they were made from")
    return ", ".join(found)


def compare(runs: Sequence[Run], samples: int = 1000, seed: int = 0) -> JsonObject:
    """Metrics of each name and its difference to the first one.

    Args:
        runs: Two or more that are comparable.
        samples: Resamples of users.
        seed: Of the resampling.

    Returns:
        systems[name][column][metric]: mean, low, high, and sd over the seeds, None for one seed.
        differences[name][column][metric]: mean, low, high of name - first name.
        num_seeds[name]; and split, k, num_rows and num_users, which all runs share.

    Raises:
        ValueError: If the rows of the runs are not the same.
    """
    cutoffs, names = runs[0].setting("k"), list(dict.fromkeys(run.name for run in runs))
    metrics = [f"{metric}@{k}" for metric in METRICS for k in cutoffs]
    values, rows = _read(runs, metrics, cutoffs)
    users, reference = rows[0], names[0]
    result: JsonObject = {
        "split": runs[0].setting("split"),
        "k": cutoffs,
        "num_rows": len(users),
        "num_users": len(set(users)),
        "num_seeds": {name: len(values[name]) for name in names},
        "systems": {},
        "differences": {},
    }
    averages = {name: np.mean(seeds, axis=0) for name, seeds in values.items()}  # (n, V) each
    for name in names:
        by_seed = np.stack([of_seed.mean(axis=0) for of_seed in values[name]])  # (seeds, V)
        spread = by_seed.std(axis=0, ddof=1).tolist() if len(by_seed) > 1 else [None] * by_seed.shape[1]
        result["systems"][name] = _by_column(metrics, interval(averages[name], users, samples, seed), spread)
        if name != reference:
            difference = paired_difference(averages[name], averages[reference], users, samples, seed)
            result["differences"][name] = _by_column(metrics, difference)
    return result


def _read(
    runs: Sequence[Run], metrics: Sequence[str], cutoffs: list[int]
) -> tuple[dict[str, list[np.ndarray]], tuple[list, ...]]:
    """Values (n, V) of each run by its name, columns side by side, and the rows that all of them have."""
    values: dict[str, list[np.ndarray]] = {}
    common = None
    for run in runs:
        positions, rows = run.positions()
        common = common or rows
        if rows != common:
            raise ValueError(
                f"'{runs[0].path}' and '{run.path}' hold different rows in per_user.parquet; evaluate both again."
            )
        found = [per_row(positions[column], cutoffs) for column in COLUMNS]
        values.setdefault(run.name, []).append(np.stack([of[metric] for of in found for metric in metrics], axis=1))
    return values, common


def _by_column(
    metrics: Sequence[str], estimates: tuple[np.ndarray, ...], spread: Sequence[float | None] | None = None
) -> JsonObject:
    found: JsonObject = {column: {} for column in COLUMNS}
    keys = [(column, metric) for column in COLUMNS for metric in metrics]
    for i, (column, metric) in enumerate(keys):
        mean, low, high = (float(part[i]) for part in estimates)
        entry = {"mean": mean, "low": low, "high": high}
        found[column][metric] = entry if spread is None else {**entry, "sd": spread[i]}
    return found


def show(result: JsonObject) -> None:
    """Print what `compare` returned."""
    reference = next(iter(result["systems"]))
    title = f"{result['num_rows']} {result['split']} rows of {result['num_users']} users"
    for column in COLUMNS:
        rows = [
            [name, metric, found["mean"], found["low"], found["high"], seeds, "" if seeds == 1 else found["sd"]]
            for name, seeds in result["num_seeds"].items()
            for metric, found in result["systems"][name][column].items()
        ]
        header = ("run", "metric", "mean", "95 % low", "95 % high", "seeds", "sd of seeds")
        table(f"{column}: {title}", header, rows)
        rows = [
            [name, metric, found["mean"], found["low"], found["high"], _ahead(found, name, reference)]
            for name, columns_of in result["differences"].items()
            for metric, found in columns_of[column].items()
        ]
        if rows:
            header = ("run", "metric", "difference", "95 % low", "95 % high", "ahead")
            table(f"{column}: run - {reference}, paired over users", header, rows)


def _ahead(difference: dict[str, float], name: str, reference: str) -> str:
    return name if difference["low"] > 0 else reference if difference["high"] < 0 else "neither"
