"""What is said of an evaluation: the content of metrics.json, and its tables on the terminal.

All systems are always listed, in both columns, and ours is set against each baseline with a paired interval: the reader
sees where a baseline wins.
"""

from __future__ import annotations

import numpy as np

from llmrec.data.examples import Examples
from llmrec.evaluation.bootstrap import interval, paired_difference
from llmrec.evaluation.exact import EXACT, lines
from llmrec.evaluation.learning import CUTOFF, NEAR
from llmrec.evaluation.metrics import (
    coverage,
    gini,
    invalid_rate,
    novelty,
    per_row,
    popularity_percentile,
    unfilled,
)
from llmrec.evaluation.protocol import COLUMNS, Outcome, seen_targets
from llmrec.evaluation.ranking import UNFILLED
from llmrec.evaluation.strata import exposure, find_strata, stratify
from llmrec.runtime.console import say, table
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.groups import entropy_bits
from llmrec.sid.table import EMPTY, SidTable

OURS = "ours"
NOT_JUDGED = "not known, no step was judged while it trained (eval_steps of `llmrec sft` asks for it)."
Outcomes = dict[tuple[str, str], Outcome]  # (system, column) -> outcome


def summarise(
    outcomes: Outcomes, rows: Examples, cutoffs: list[int], training: np.ndarray, samples: int = 1000, seed: int = 0
) -> JsonObject:
    """Metrics of every system in both columns, with intervals, within strata, and with differences to ours.

    Args:
        outcomes: Of the same rows; `ours` and the baselines.
        rows: The rows that were evaluated.
        cutoffs: The k of recall@k, ndcg@k and mrr@k.
        training: (N,) training interactions of each item of the catalogue.
        samples: Resamples of users.
        seed: Of the resampling.

    Returns:
        systems[system][column]: metric -> value, and `intervals`: metric -> [low, high].
        differences[baseline][column][metric]: mean, low, high of ours - baseline at the largest cut-off.
        strata: as `stratify` returns them, at the largest cut-off; exposure: as `exposure` returns it.
    """
    values = {key: per_row(outcome.position, cutoffs) for key, outcome in outcomes.items()}
    names = [(key, name) for key in values for name in values[key]]
    matrix = np.stack([values[key][name] for key, name in names], axis=1)
    systems: JsonObject = {system: {} for system, _ in outcomes}
    for (system, column), outcome in outcomes.items():
        systems[system][column] = {"intervals": {}, **_of_slots(outcome, cutoffs, training)}
    for (key, name), *found in zip(names, *interval(matrix, rows.user_ids, samples, seed), strict=True):
        mean, low, high = map(float, found)
        systems[key[0]][key[1]][name] = mean
        systems[key[0]][key[1]]["intervals"][name] = [low, high]
    strata = stratify(find_strata(rows, training), values, rows.user_ids, max(cutoffs), samples, seed)
    return {
        "num_rows": len(rows),
        "num_users": len(set(rows.user_ids)),
        "num_items": len(training),
        "k": sorted(cutoffs),
        "target_in_history": float(seen_targets(rows).mean()),
        "systems": systems,
        "differences": _differences(values, rows, max(cutoffs), samples, seed),
        "strata": strata,
        "exposure": exposure(training, rows.targets, {key: outcome.items for key, outcome in outcomes.items()}),
    }


def _of_slots(outcome: Outcome, cutoffs: list[int], training: np.ndarray) -> dict[str, float]:
    """What concerns the slots of a ranking, whatever the targets are."""
    items, ascending = outcome.items, sorted(cutoffs)
    return {
        **{f"coverage@{k}": coverage(items, k, len(training)) for k in ascending},
        **{f"gini@{k}": gini(items, k, len(training)) for k in ascending},
        **{f"novelty@{k}": novelty(items, k, training) for k in ascending},
        **{f"popularity_percentile@{k}": popularity_percentile(items, k, training) for k in ascending},
        **{f"unfilled@{k}": unfilled(items, k) for k in ascending},
        "invalid_rate": invalid_rate(items, outcome.invalid),
        "rows_per_s": len(items) / max(outcome.seconds, 1e-9),
    }


def sid_usage(table: SidTable, outcomes: Outcomes) -> list[JsonObject]:
    """How many codes of each level the catalogue uses, and what ours shows of them.

    Args:
        table: SIDs of the model, in catalogue order.
        outcomes: With those of ours.

    Returns:
        Per level: level, codebook_size, and for `catalog` and each column the codes used and the effective number of
        them, 2^entropy.
    """
    shown = {column: outcomes[OURS, column].items for column in COLUMNS}
    rows = {"catalog": np.arange(table.num_items), **{name: items[items != UNFILLED] for name, items in shown.items()}}
    codes = {name: table.codes(of) for name, of in rows.items()}  # (…, L) each
    found = []
    for level, size in enumerate(table.level_sizes):
        entry: JsonObject = {"level": level, "codebook_size": size}
        for name, of in codes.items():
            counts = np.bincount(of[:, level][of[:, level] != EMPTY], minlength=size)
            entry[name] = {"used": int((counts > 0).sum()), "effective": 2 ** entropy_bits(counts)}
        found.append(entry)
    return found


def _differences(
    values: dict[tuple[str, str], dict[str, np.ndarray]], rows: Examples, k: int, samples: int, seed: int
) -> JsonObject:
    baselines = [system for system, column in values if column == COLUMNS[0] and system != OURS]
    pairs = [
        (system, column, name) for system in baselines for column in COLUMNS for name in (f"recall@{k}", f"ndcg@{k}")
    ]
    found: JsonObject = {system: {column: {} for column in COLUMNS} for system in baselines}
    if not pairs:
        return found
    ours = np.stack([values[OURS, column][name] for _, column, name in pairs], axis=1)
    theirs = np.stack([values[system, column][name] for system, column, name in pairs], axis=1)
    difference = paired_difference(ours, theirs, rows.user_ids, samples, seed)
    for (system, column, name), mean, low, high in zip(pairs, *difference, strict=True):
        found[system][column][name] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return found


def show(metrics: JsonObject) -> None:
    """Print what `llmrec evaluate` measured, from the content of its metrics.json."""
    for column in COLUMNS:
        _show_column(metrics, column)
        _show_differences(metrics, column)
        _show_strata(metrics, column)
        _show_slots(metrics, column)
        say(slots_line(metrics, column))
    _show_learning(metrics)
    _show_exact(metrics)


def _show_column(metrics: JsonObject, column: str) -> None:
    cutoffs = metrics["k"]
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in cutoffs] + [f"mrr@{max(cutoffs)}"]
    rows = []
    for system, found in metrics["systems"].items():
        rows.append([system, *(found[column][name] for name in names)])
        if system == OURS:
            for end, label in enumerate(("  95 % low", "  95 % high")):
                rows.append([label, *(found[column]["intervals"][name][end] for name in names)])
    title = f"{column}: {metrics['num_rows']} {metrics['split']} rows of {metrics['num_users']} users"
    table(f"{title}, {metrics['num_items']} items", ("system", *names), rows)


def _show_differences(metrics: JsonObject, column: str) -> None:
    rows = [
        [baseline, name, found["mean"], found["low"], found["high"], _winner(found)]
        for baseline, columns in metrics["differences"].items()
        for name, found in columns[column].items()
    ]
    if rows:
        header = ("baseline", "metric", "difference", "95 % low", "95 % high", "ahead")
        table(f"{column}: ours - baseline, paired over users", header, rows)


def _show_strata(metrics: JsonObject, column: str) -> None:
    systems = list(metrics["systems"])
    for name in (f"recall@{max(metrics['k'])}", f"ndcg@{max(metrics['k'])}"):
        rows = []
        for stratum in metrics["strata"]:
            found = [stratum["systems"][system][column][name] for system in systems]
            ends = (found[0]["low"], found[0]["high"])
            label = ("history " if stratum["family"] == "history" else "") + stratum["name"]
            others = (entry["mean"] for entry in found[1:])
            rows.append([label, stratum["num_rows"], found[0]["mean"], *ends, *others])
        header = ("stratum", "rows", OURS, "95 % low", "95 % high", *systems[1:])
        table(f"{column}: {name} by popularity of the target, length of the history", header, rows)


def _show_slots(metrics: JsonObject, column: str) -> None:
    names = [f"{name}@{max(metrics['k'])}" for name in ("coverage", "gini", "novelty", "popularity_percentile")]
    rows = [[system, *(found[column][name] for name in names)] for system, found in metrics["systems"].items()]
    table(f"{column}: what is shown", ("system", *names), rows)


def _show_learning(metrics: JsonObject) -> None:
    curves = metrics.get("learning", {})  # evaluations of before had none
    rows = [
        [system, curve["best"], curve["near"]["supervised"], round(curve["near"]["seconds"])]
        for system, curve in curves.items()
        if curve and curve["near"]
    ]
    if rows:
        header = ("system", f"best valid ndcg@{CUTOFF}", f"items to {NEAR:.0%} of it", "seconds")
        table("learning: items trained on, and wall time with judging", header, rows)
    if curves and curves[OURS] is None:
        say(f"ours, learning: {NOT_JUDGED}")


def _show_exact(metrics: JsonObject) -> None:
    if metrics.get(EXACT):
        table(f"exact, {metrics[EXACT]['num_rows']} rows", *lines(metrics[EXACT]))


def _winner(difference: dict[str, float]) -> str:
    """Who is ahead by more than the interval can explain."""
    return OURS if difference["low"] > 0 else "baseline" if difference["high"] < 0 else "neither"


def slots_line(metrics: JsonObject, column: str) -> str:
    """Sentence on what the slots of ours hold, and how fast they were filled."""
    found, k = metrics["systems"][OURS][column], max(metrics["k"])
    line = (
        f"ours, {column}: SID-level recall@{k} {found[f'sid_recall@{k}']:.4f}, "
        f"coverage@{k} {found[f'coverage@{k}']:.3f}, unfilled slots {found[f'unfilled@{k}']:.2%}, "
        f"invalid answers {found['invalid_rate']:.2%}, {found['rows_per_s']:.1f} rows/s "
        f"at {metrics['num_beams']} beams"
    )
    if column == "seen_excluded" and metrics["target_in_history"]:
        line += f"; {metrics['target_in_history']:.2%} of targets are in the history and count as misses"
    return line + "."
