"""The page of `llmrec compare`."""

from __future__ import annotations

from llmrec.evaluation.protocol import COLUMNS
from llmrec.reports.evaluation import TITLES
from llmrec.reports.pages import Estimate, Table, render_page
from llmrec.runtime.manifest import JsonObject


def render(result: JsonObject) -> str:
    """Render the page.

    Args:
        result: Result of `llmrec.evaluation.compare.compare`.
    """
    return render_page(
        "comparison.html.jinja",
        "Comparison of runs",
        split=result["split"],
        num_examples=result["num_examples"],
        num_users=result["num_users"],
        reference=next(iter(result["systems"])),
        results=[_column(result, column) for column in COLUMNS],
    )


def _column(result: JsonObject, column: str) -> JsonObject:
    """Tables of one column: every run, and its difference to the first."""
    systems = {name: columns[column] for name, columns in result["systems"].items()}
    names = list(next(iter(systems.values())))
    runs = [
        [name, str(result["num_seeds"][name]), *(Estimate(**entries[metric]) for metric in names)]
        for name, entries in systems.items()
    ]
    differences = [
        [name, *(Estimate(**columns[column][metric], is_difference=True) for metric in names)]
        for name, columns in result["differences"].items()
    ]
    return {
        "title": TITLES[column],
        "runs": Table(["run", "seeds", *names], runs),
        "differences": Table(["run", *names], differences),
    }
