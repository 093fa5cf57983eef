"""An evaluation on the terminal: a verdict, and one table with every system in both columns.

The reference is compared with each of the others by a paired interval, so the reader also sees where a baseline wins.
Cut-offs, strata and the rest stand on the page.
"""

from __future__ import annotations

from llmrec.evaluation.metrics import SHOWN
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.summary import OURS
from llmrec.evaluation.verdict import IN_TABLE, MODEL, excludes_zero, interval_text, of_evaluation
from llmrec.runtime.console import table, tell
from llmrec.runtime.manifest import JsonObject

FIRST, HERE = "first", "this"  # who is ahead, in a narrow column
NOT_VALIDATED = (
    "unknown, because the checkpoint was not validated during training (set eval_steps of `llmrec sft`); a mixture "
    "never is."
)


def show(metrics: JsonObject, ours: str = MODEL) -> None:
    """Print the results of an evaluation: a verdict and one table.

    Args:
        metrics: Content of metrics.json.
        ours: What `ours` is called in the verdict.
    """
    for sentence in [*of_evaluation(metrics, ours), *overlap_notes(metrics), *sample_notes(metrics)]:
        tell(sentence)
    show_systems(
        {column: {name: of[column] for name, of in metrics["systems"].items()} for column in COLUMNS},
        {column: {name: of[column] for name, of in metrics["differences"].items()} for column in COLUMNS},
        max(metrics["k"]),
        f"{metrics['num_examples']:,} {metrics['split']} examples of {metrics['num_users']:,} users, "
        f"{metrics['num_items']:,} items",
    )


def show_systems(systems: JsonObject, differences: JsonObject, k: int, measured_on: str) -> None:
    """Print recall, ndcg and the paired interval of every system in both columns, in 80 columns of text.

    Args:
        systems: systems[column][name][metric] is a value; the first name is the reference.
        differences: differences[column][name][metric] has low and high of the reference less the system.
        k: Cut-off.
        measured_on: Examples that the values are means of.
    """
    names, reference = [f"{metric}@{k}" for metric in SHOWN], next(iter(systems[COLUMNS[0]]))
    first = OURS if reference == OURS else FIRST
    rows = []
    for column, of_column in systems.items():
        for i, (name, values) in enumerate(of_column.items()):
            difference = differences[column].get(name, {}).get(names[-1])
            lead = ["", ""] if difference is None else [interval_text(difference), _ahead(difference, first)]
            rows.append(["" if i else IN_TABLE[column], name, *(values[each] for each in names), *lead])
    header = ["history", "system", *names, "lead, 95 %", "ahead"]
    if not any(differences.values()):
        table(measured_on, header[:-2], [row[:-2] for row in rows])
        return
    table(measured_on, header, rows)
    named = "" if first == reference else f" ({reference})"
    tell(
        f"Lead: {names[-1]} of {reference} minus that of the system in the line; below 0, that system is better. "
        f"Ahead: {first}{named}, {HERE} (the system in the line), or open (0 is inside the interval)."
    )


def _ahead(difference: JsonObject, first: str) -> str:
    """Name of the one that is ahead: the reference, by a short name, or the system of the line."""
    return "open" if not excludes_zero(difference) else first if difference["low"] > 0 else HERE


def overlap_notes(metrics: JsonObject) -> list[str]:
    """Sentences on what was left out, if the catalogue is not the one that the checkpoint was trained on."""
    overlap = metrics.get("overlap")  # absent from older evaluations
    return overlap["notes"] if overlap else []


def sample_notes(metrics: JsonObject) -> list[str]:
    """Sentence on the sample of examples and its standard errors, if not all were evaluated."""
    sample = metrics.get("sample")  # absent from older evaluations
    if sample is None:
        return []
    errors = next(iter(sample["standard_error"].values()))
    said = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
    return [
        f"These {metrics['num_examples']:,} examples were drawn from {sample['of']:,} with seed {sample['seed']}; the "
        f"standard errors of {reference_of(metrics)} for all of them are {said}."
    ]


def reference_of(metrics: JsonObject) -> str:
    """The system that the others are compared with: ours, or without a model the first baseline."""
    return next(iter(metrics["systems"]))


def strata_of(metrics: JsonObject, column: str) -> list[JsonObject]:
    """Strata of `metrics.json` that have results in a column; those of older evaluations have no `column`."""
    return [stratum for stratum in metrics["strata"] if stratum.get("column") in (None, column)]


def slots_line(metrics: JsonObject, column: str) -> str:
    """Sentence on the slots of the reference and on its speed."""
    reference, k = reference_of(metrics), max(metrics["k"])
    values, is_ours = metrics["systems"][reference][column], reference == OURS
    line = (
        f"{reference}, {column}: "
        + (f"SID-level recall@{k} {values[f'sid_recall@{k}']:.4f}, " if is_ours else "")
        + f"coverage@{k} {values[f'coverage@{k}']:.3f}, unfilled slots {values[f'unfilled@{k}']:.2%}, "
        f"invalid answers {values['invalid_rate']:.2%}, {values['examples_per_s']:.1f} examples/s"
        + (f" at {metrics['num_beams']} beams" if is_ours and metrics["num_beams"] else "")
    )
    if column == "seen_excluded" and metrics["target_in_history"]:
        line += f"; {metrics['target_in_history']:.2%} of targets are in the history and count as misses"
    return line + "."
