"""The tables of an evaluation on the terminal.

Every system is listed in both columns, and the LLM is compared with each baseline by a paired interval, so the reader
also sees where a baseline wins.
"""

from __future__ import annotations

from llmrec.evaluation.exact import EXACT, lines
from llmrec.evaluation.learning import CUTOFF, NEAR
from llmrec.evaluation.metrics import SHOWN, SLOT_METRICS, shown_names
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.summary import OURS
from llmrec.runtime.console import table, tell
from llmrec.runtime.manifest import JsonObject

NOT_VALIDATED = (
    "unknown, because the checkpoint was not validated during training (set eval_steps of `llmrec sft`); a mixture "
    "never is."
)


def show(metrics: JsonObject) -> None:
    """Print the results of `llmrec evaluate`, from the content of its metrics.json."""
    for column in COLUMNS:
        _show_column(metrics, column)
        _show_differences(metrics, column)
        _show_strata(metrics, column)
        _show_slots(metrics, column)
        tell(slots_line(metrics, column))
    _show_learning(metrics)
    if metrics.get(EXACT):
        header, rows = lines(metrics[EXACT])
        table(f"exact, {metrics[EXACT]['num_examples']} examples", header, [[name, *values] for name, values in rows])


def _show_column(metrics: JsonObject, column: str) -> None:
    names = shown_names(metrics["k"])
    rows = []
    for system, columns in metrics["systems"].items():
        rows.append([system, *(columns[column][name] for name in names)])
        if system == reference_of(metrics):
            for end, label in enumerate(("  95 % low", "  95 % high")):
                rows.append([label, *(columns[column]["intervals"][name][end] for name in names)])
    title = f"{column}: {metrics['num_examples']} {metrics['split']} examples of {metrics['num_users']} users"
    table(f"{title}, {metrics['num_items']} items", ("system", *names), rows)


def _show_differences(metrics: JsonObject, column: str) -> None:
    reference = reference_of(metrics)
    rows = [
        [baseline, name, entry["mean"], entry["low"], entry["high"], _winner(entry, reference)]
        for baseline, columns in metrics["differences"].items()
        for name, entry in columns[column].items()
    ]
    if rows:
        header = ("baseline", "metric", "difference", "95 % low", "95 % high", "ahead")
        table(f"{column}: {reference} - baseline, paired over users", header, rows)


def reference_of(metrics: JsonObject) -> str:
    """The system that the others are compared with: ours, or without a model the first baseline."""
    return next(iter(metrics["systems"]))


def _show_strata(metrics: JsonObject, column: str) -> None:
    systems = list(metrics["systems"])
    for name in (f"{metric}@{max(metrics['k'])}" for metric in SHOWN):
        rows = []
        for stratum in strata_of(metrics, column):
            ours, *others = (stratum["systems"][system][column][name] for system in systems)
            label = ("" if stratum["family"] == "popularity" else f"{stratum['family']} ") + stratum["name"]
            means = [entry["mean"] for entry in others]
            rows.append([label, stratum["num_examples"], ours["mean"], ours["low"], ours["high"], *means])
        header = ("stratum", "examples", systems[0], "95 % low", "95 % high", *systems[1:])
        table(f"{column}: {name} by stratum", header, rows)


def strata_of(metrics: JsonObject, column: str) -> list[JsonObject]:
    """Strata of `metrics.json` that have results in a column; those of older evaluations have no `column`."""
    return [stratum for stratum in metrics["strata"] if stratum.get("column") in (None, column)]


def _show_slots(metrics: JsonObject, column: str) -> None:
    names = [f"{name}@{max(metrics['k'])}" for name in SLOT_METRICS]
    rows = [[system, *(columns[column][name] for name in names)] for system, columns in metrics["systems"].items()]
    table(f"{column}: shown items", ("system", *names), rows)


def _show_learning(metrics: JsonObject) -> None:
    curves = metrics.get("learning", {})  # absent from older evaluations
    rows = [
        [system, curve["best"], curve["near"]["supervised"], round(curve["near"]["seconds"])]
        for system, curve in curves.items()
        if curve and curve["near"]
    ]
    if rows:
        header = ("system", f"best valid ndcg@{CUTOFF}", f"items to {NEAR:.0%} of it", "seconds")
        table("learning: trained items, and wall time with validation", header, rows)
    if OURS in curves and curves[OURS] is None:
        tell(f"ours, learning curve: {NOT_VALIDATED}")


def _winner(difference: dict[str, float], reference: str) -> str:
    """The system that is ahead by more than the interval explains, or neither."""
    return reference if difference["low"] > 0 else "baseline" if difference["high"] < 0 else "neither"


def slots_line(metrics: JsonObject, column: str) -> str:
    """Sentence on the slots of the reference and on its speed."""
    reference, k = reference_of(metrics), max(metrics["k"])
    values, is_ours = metrics["systems"][reference][column], reference == OURS
    line = (
        f"{reference}, {column}: "
        + (f"SID-level recall@{k} {values[f'sid_recall@{k}']:.4f}, " if is_ours else "")
        + f"coverage@{k} {values[f'coverage@{k}']:.3f}, unfilled slots {values[f'unfilled@{k}']:.2%}, "
        f"invalid answers {values['invalid_rate']:.2%}, {values['examples_per_s']:.1f} examples/s"
        + (f" at {metrics['num_beams']} beams" if is_ours else "")
    )
    if column == "seen_excluded" and metrics["target_in_history"]:
        line += f"; {metrics['target_in_history']:.2%} of targets are in the history and count as misses"
    return line + "."
