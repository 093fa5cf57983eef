"""The page of `llmrec compare`."""

from __future__ import annotations

from llmrec.evaluation.compare import learning_lines
from llmrec.evaluation.learning import CUTOFF
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.verdict import of_comparison
from llmrec.reports.evaluation import TITLES, UNITS, learning_curve
from llmrec.reports.pages import Estimate, Figure, Table, render_page
from llmrec.reports.svg import COLOURS, Line, plot
from llmrec.runtime.manifest import JsonObject


def render(result: JsonObject) -> str:
    """Render the page.

    Args:
        result: Result of `llmrec.evaluation.compare.compare`.
    """
    return render_page(
        "comparison.html.jinja",
        "Comparison of runs",
        verdict=of_comparison(result),
        split=result["split"],
        num_examples=result["num_examples"],
        num_users=result["num_users"],
        reference=next(iter(result["systems"])),
        results=[_column(result, column) for column in COLUMNS],
        learning=_learning(result) if result["learning"] else None,
    )


def _learning(result: JsonObject) -> JsonObject:
    """The learning curves of all runs in one picture per unit, one line for each seed, and the table of convergence."""
    learned, names = result["learning"], list(result["systems"])
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    figures = []
    for unit, axis in UNITS.items():
        drawn = [
            learning_curve(name, curve, unit, colours[name])
            for name, of_name in learned["runs"].items()
            for curve in of_name["curves"]
        ]
        if learned["level"] is not None:
            ends = [min(line.x[0] for line in drawn), max(line.x[-1] for line in drawn)]
            drawn.append(Line(f"best of {names[0]}", ends, [learned["level"]] * 2, "#999", dashed=True))
        figures.append(Figure(f"valid ndcg@{CUTOFF} over {axis}", plot(drawn, axis, log_x=True)))
    legend = list({line.name: line for line in drawn}.values())
    return {"legend": legend, "figures": figures, "table": Table(*learning_lines(result))}


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
