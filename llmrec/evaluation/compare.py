"""Comparison of finished evaluations: same examples, same cut-offs, differences paired over users.

One system of each run is compared, ours or a baseline, from per_user.parquet. Runs with the same name are training
seeds of one system: the value of an example is the mean over them. The interval then describes the choice of users, and
the standard deviation next to it the choice of the seed.

Shapes: n examples, V metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.evaluation.bootstrap import interval, paired_difference
from llmrec.evaluation.learning import CUTOFF, Point, reach
from llmrec.evaluation.metrics import SHOWN, per_example
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.runs import ExampleKeys, Run
from llmrec.evaluation.tables import show_systems
from llmrec.evaluation.verdict import negated, of_comparison
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import JsonObject


def compare(runs: Sequence[Run], seed: int = 0) -> JsonObject:
    """Metrics of each name and its difference to the first one.

    Args:
        runs: Two or more runs that `check_comparable` accepts.
        seed: Seed of the resampling of users.

    Returns:
        systems[name][column][metric]: mean, low, high, and sd over the seeds, which is None for one seed.
        differences[name][column][metric]: mean, low, high of name - first name.
        num_seeds[name]; and split, k, num_examples and num_users, which all runs share.
        learning: result of `convergence`.

    Raises:
        ValueError: If the runs have different examples.
    """
    cutoffs, names = runs[0].cutoffs, list(dict.fromkeys(run.name for run in runs))
    metrics = [f"{metric}@{k}" for metric in SHOWN for k in cutoffs]
    values, users = _read(runs, metrics, cutoffs)
    reference = names[0]
    result: JsonObject = {
        "split": runs[0].split,
        "k": cutoffs,
        "num_examples": len(users),
        "num_users": len(set(users)),
        "num_seeds": {name: len(values[name]) for name in names},
        "systems": {},
        "differences": {},
    }
    averages = {name: np.mean(seeds, axis=0) for name, seeds in values.items()}  # (n, V) each
    for name in names:
        by_seed = np.stack([of_seed.mean(axis=0) for of_seed in values[name]])  # (seeds, V)
        spread = by_seed.std(axis=0, ddof=1).tolist() if len(by_seed) > 1 else [None] * by_seed.shape[1]
        result["systems"][name] = _by_column(metrics, interval(averages[name], users, seed=seed), spread)
        if name != reference:
            difference = paired_difference(averages[name], averages[reference], users, seed=seed)
            result["differences"][name] = _by_column(metrics, difference)
    result["learning"] = convergence(runs)
    return result


def convergence(runs: Sequence[Run]) -> JsonObject | None:
    """The training that each name needed to reach the best valid ndcg of the first name.

    Args:
        runs: Runs as `compare` takes them; those that were not validated during training are left out.

    Returns:
        level: best valid ndcg of the first name, the mean over its seeds; None if it was not validated.
        runs[name]: best, the mean over the seeds; curves, one list of points for each seed; reached, one point for each
        seed, None for a seed that stays below `level`. None instead of all of it if no run was validated.
    """
    curves: dict[str, list[Sequence[Point]]] = {}
    for run in runs:
        if run.curve:
            curves.setdefault(run.name, []).append(run.curve)
    if not curves:
        return None
    best = {name: float(np.mean([max(p["ndcg"] for p in curve) for curve in of])) for name, of in curves.items()}
    level = best.get(runs[0].name)
    reached = {name: [None if level is None else reach(curve, level) for curve in of] for name, of in curves.items()}
    return {
        "level": level,
        "runs": {name: {"best": best[name], "reached": reached[name], "curves": of} for name, of in curves.items()},
    }


def _read(
    runs: Sequence[Run], metrics: Sequence[str], cutoffs: list[int]
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Values (n, V) of each run by its name, both columns side by side, and the user of each example."""
    values: dict[str, list[np.ndarray]] = {}
    common: ExampleKeys | None = None
    for run in runs:
        positions, keys = run.positions()
        common = common or keys
        if keys != common:
            raise ValueError(
                f"'{runs[0].path}' and '{run.path}' hold different examples in per_user.parquet; evaluate both again."
            )
        by_column = [per_example(positions[column], cutoffs) for column in COLUMNS]
        values.setdefault(run.name, []).append(np.stack([of[metric] for of in by_column for metric in metrics], axis=1))
    return values, common.user_ids if common else []


def _by_column(
    metrics: Sequence[str], estimates: tuple[np.ndarray, ...], spread: Sequence[float | None] | None = None
) -> JsonObject:
    result: JsonObject = {column: {} for column in COLUMNS}
    keys = [(column, metric) for column in COLUMNS for metric in metrics]
    for i, (column, metric) in enumerate(keys):
        mean, low, high = (float(part[i]) for part in estimates)
        entry = {"mean": mean, "low": low, "high": high}
        result[column][metric] = entry if spread is None else {**entry, "sd": spread[i]}
    return result


def show(result: JsonObject) -> None:
    """Print the result of `compare`: a verdict and one table; the page has the rest."""
    for sentence in of_comparison(result):
        tell(sentence)
    seeds = {name: f"{name} ({count} seeds)" if count > 1 else name for name, count in result["num_seeds"].items()}
    systems = {
        column: {
            seeds[name]: {metric: entry["mean"] for metric, entry in of[column].items()}
            for name, of in result["systems"].items()
        }
        for column in COLUMNS
    }
    differences = {
        column: {
            seeds[name]: {metric: negated(entry) for metric, entry in of[column].items()}
            for name, of in result["differences"].items()
        }
        for column in COLUMNS
    }
    measured_on = f"{result['num_examples']:,} {result['split']} examples of {result['num_users']:,} users"
    show_systems(systems, differences, max(result["k"]), measured_on)


def learning_lines(result: JsonObject) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of `convergence`: the mean over the seeds, "-" unless all of them reach the level.

    Args:
        result: Result of `compare` with `learning`.
    """
    learned, reference = result["learning"], next(iter(result["systems"]))
    lines = []
    for name, of_name in learned["runs"].items():
        points = [point for point in of_name["reached"] if point]
        everyone = len(points) == len(of_name["reached"])
        means = [
            f"{np.mean([p[unit] for p in points]):,.0f}" if everyone else "-" for unit in ("supervised", "seconds")
        ]
        share = f"{len(points)} of {len(of_name['reached'])}"
        lines.append([name, f"{of_name['best']:.4f}", *([] if learned["level"] is None else [*means, share])])
    reached = [f"targets to reach {reference}", f"seconds to reach {reference}", "seeds that do"]
    return ["run", f"best valid ndcg@{CUTOFF}", *([] if learned["level"] is None else reached)], lines
