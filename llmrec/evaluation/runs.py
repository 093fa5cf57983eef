"""Finished evaluations: their file of places, how `llmrec compare` reads it, and that two measured the same thing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.configs.evaluate import TRAINED
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.learning import Point
from llmrec.evaluation.metrics import Position
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.summary import OURS, Outcomes
from llmrec.runtime.manifest import JsonObject, read_manifest, verify

PER_USER = "per_user.parquet"
STAGES = ("evaluate", "ensemble")  # whose directories hold metrics.json and per_user.parquet


class ExampleKeys(NamedTuple):
    """The identity of each evaluated example; two runs are compared only if they are equal.

    Attributes:
        user_ids: User of each example.
        places: Position of each example in its split.
        targets: item_id of each target.
    """

    user_ids: list[str]
    places: list[int]
    targets: list[str]


@dataclass(frozen=True)
class Run:
    """One finished evaluation.

    Attributes:
        name: Name of the system; runs with the same name are its seeds.
        path: Directory of the evaluation.
        identity: Identity in its manifest: resolved config and hashes of the inputs.
        split: The split that was evaluated.
        trained: Identity of the stage that made the checkpoint, or None if it is unknown.
        system: The system that is compared: ours, or one of the run's baselines.
        curve: Its validations during training; empty if there were none.
    """

    name: str
    path: str
    identity: JsonObject
    split: str
    trained: JsonObject | None
    system: str = OURS
    curve: Sequence[Point] = ()

    @classmethod
    def load(cls, name: str, path: str, system: str | None = None) -> Run:
        """Check a directory and read its description.

        Args:
            name: Name of the system.
            path: The directory.
            system: System to compare; ours by default, or the first baseline of a run without a model.

        Raises:
            ValueError: If it is not a complete result of `llmrec evaluate`, is of an earlier version, or does not have
                the system.
        """
        verify(path, *STAGES)
        identity = read_manifest(path)["identity"]
        if not {"config", "inputs"} <= identity.keys():
            raise ValueError(f"'{path}' does not say how it was evaluated; give the --out of `llmrec evaluate` itself.")
        if "max_rows" in identity["config"]:
            raise ValueError(f"'{path}' was written by an earlier version of llmrec; run `llmrec evaluate` again.")
        metrics = json.loads((Path(path) / "metrics.json").read_text(encoding="utf-8"))
        system = system or next(iter(metrics["systems"]))
        if system not in metrics["systems"]:
            raise ValueError(f"'{path}' has no system '{system}'; it has {', '.join(metrics['systems'])}.")
        learned = metrics.get("learning", {}).get(system)
        curve = learned["curve"] if learned else ()
        return cls(name, path, identity, metrics["split"], metrics.get("trained"), system, curve)

    @property
    def cutoffs(self) -> list[int]:
        """Every k of the metrics, ascending."""
        return sorted(self.identity["config"]["k"])

    def setting(self, key: str) -> object:
        """Value of an option of the evaluation; lists are sorted."""
        value = self.identity["config"].get(key)
        return sorted(value) if isinstance(value, list) else value

    def input(self, key: str) -> str | None:
        """Hash of an input of the evaluation."""
        return self.identity["inputs"].get(key)

    def positions(self) -> tuple[dict[str, Position], ExampleKeys]:
        """The places of the targets by column, and the identity of the examples."""
        lines = pq.read_table(Path(self.path) / PER_USER, filters=pc.field("system") == self.system)
        by_column = {column: lines.filter(pc.equal(lines["column"], column)) for column in COLUMNS}
        positions = {
            column: Position(*(part[name].to_numpy() for name in Position._fields))
            for column, part in by_column.items()
        }
        first = by_column[COLUMNS[0]]
        keys = (first[name].to_pylist() for name in (columns.USER_ID, "example", columns.TARGET))
        return positions, ExampleKeys(*keys)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that did not measure the same thing, and runs of one name that differ in more than the seed.

    Raises:
        ValueError: With every difference.
    """
    first, problems = runs[0], list[str]()
    for run in runs[1:]:
        if run.split != first.split:
            difference = f"split is {first.split} in '{first.path}' and {run.split} in '{run.path}'"
            problems.append(f"{difference}; evaluate both with the same --split")
        for key, remedy in (("k", "--k"), ("max_examples", "--max-examples")):
            if run.setting(key) != first.setting(key):
                difference = f"{key} is {first.setting(key)} in '{first.path}' and {run.setting(key)} in '{run.path}'"
                problems.append(f"{difference}; evaluate both with the same {remedy}")
        if run.input("catalog") != first.input("catalog"):
            problems.append(f"'{first.path}' and '{run.path}' were evaluated on different catalogues")
        sampled = first.setting("max_examples") is not None and run.setting("max_examples") is not None
        if sampled and run.setting("seed") != first.setting("seed"):
            seeds = f"{first.setting('seed')} in '{first.path}' and {run.setting('seed')} in '{run.path}'"
            problems.append(f"the seed that drew the examples is {seeds}; evaluate both with the same --seed")
    for name in dict.fromkeys(run.name for run in runs):
        problems += seed_problems([run for run in runs if run.name == name])
    if problems:
        raise ValueError("These runs cannot be compared: " + "; ".join(problems) + ".")


def seed_problems(runs: Sequence[Run]) -> list[str]:
    """Reasons why runs of one name are not training seeds of one system; empty if they are."""
    systems = dict.fromkeys(run.system for run in runs)
    if len(systems) > 1:
        return [f"the name '{runs[0].name}' is given to {' and '.join(systems)}; give each system its own name"]
    return _checkpoint_problems(runs) if runs[0].system == OURS else _baseline_problems(runs)


def _baseline_problems(runs: Sequence[Run]) -> list[str]:
    """Reasons why runs of one baseline are not trainings with different seeds, or different rankers of `teach`."""
    paths: dict[object, str] = {}  # by seed, or by the content of the directory
    problems = []
    for run in runs:
        seed, shared = run.setting("seed"), f"share the name '{run.name}' and {run.system}"
        kept = run.input(f"baseline {run.system}")
        if kept and kept in paths:
            problems.append(f"'{paths[kept]}' and '{run.path}' {shared}, which is the same ranker; give it once")
        elif not kept and seed in paths:
            problems.append(f"'{paths[seed]}' and '{run.path}' {shared} with the same seed, {seed}")
        elif paths and not kept and run.system not in TRAINED:
            problems.append(
                f"'{runs[0].path}' and '{run.path}' {shared}, which is counted and has no seed; give it once"
            )
        paths.setdefault(kept or seed, run.path)
    return problems


def _checkpoint_problems(runs: Sequence[Run]) -> list[str]:
    """Reasons why checkpoints of one name are not trainings with different seeds."""
    first, problems = runs[0], []
    checkpoints: dict[str | None, str] = {}
    for run in runs if len(runs) > 1 else ():
        pair = f"'{first.path}' and '{run.path}' share the name '{run.name}' but"
        if run.trained is None:
            problems.append(f"'{run.path}' shares the name '{run.name}' but does not say how its checkpoint was made")
        elif first.trained is not None and (difference := training_difference(first.trained, run.trained)):
            problems.append(f"{pair} differ in more than the training seed: {difference}")
        if run.input("model") in checkpoints:
            same = checkpoints[run.input("model")]
            problems.append(f"'{same}' and '{run.path}' share the name '{run.name}' and evaluate the same checkpoint")
        checkpoints.setdefault(run.input("model"), run.path)
    return problems


def training_difference(a: JsonObject, b: JsonObject) -> str:
    """Settings and inputs, other than the seed, in which two checkpoints differ; empty if there are none."""
    if a["stage"] != b["stage"]:
        return f"one was made by `llmrec {a['stage']}`, the other by `llmrec {b['stage']}`"
    differences = []
    for part in ("config", "inputs"):
        left, right = a.get(part, {}), b.get(part, {})
        for key in sorted({*left, *right} - {"seed"}):
            if left.get(key) != right.get(key):
                values = f"{key} is {left.get(key)!r} and {right.get(key)!r}"
                differences.append(values if part == "config" else f"the input '{key}' is not the same")
    return ", ".join(differences)


def per_user(outcomes: Outcomes, places: np.ndarray, examples: Examples, catalog: Catalog) -> pa.Table:
    """One line per system, column and example: the target and its place in the ranking.

    Returns:
        Table with system, column, user_id, example (position in the split), target (item_id), start, size, group; the
        last three as in `llmrec.evaluation.metrics.Position`.
    """
    targets = catalog.item_ids.of(examples.targets)
    parts = []
    for (system, column), outcome in outcomes.items():
        data = {
            "system": [system] * len(examples),
            "column": [column] * len(examples),
            columns.USER_ID: examples.user_ids,
            "example": places,
            columns.TARGET: targets,
            **outcome.position._asdict(),
        }
        parts.append(pa.table(data))
    return pa.concat_tables(parts)
