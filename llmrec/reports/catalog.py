"""The page of `llmrec prepare`: what was read and kept, what it means, and what a model has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.data.report.steps import ROUND, whole
from llmrec.evaluation.protocol import COLUMNS
from llmrec.reports.pages import Estimate, Figure, Table, render_page
from llmrec.reports.svg import COLOURS, Line, plot
from llmrec.runtime.manifest import JsonObject

PAGE = "report.html"
HEADINGS = {"warning": "Look at this", "note": "Good to know", "good": "Fine"}
COLUMN_NAMES = {"plain": "may be shown", "seen_excluded": "are left out"}
SYSTEM_NAMES = {
    "popularity": "the most popular items",
    "markov": "the items that most often followed the last one (Markov)",
}
SPLIT_NAMES = {"train": "training", "valid": "validation", "test": "test"}


def render(report: JsonObject, name: str) -> str:
    """Render the page.

    Args:
        report: The data report, verdicts included.
        name: Name of the catalogue.
    """
    behaviour, times = report["behaviour"], report["times"]
    return render_page(
        "catalog.html.jinja",
        f"The data of {name}",
        behaviour=behaviour,
        opening=_opening(report["verdicts"]),
        verdicts=[
            {"kind": kind, "heading": heading, "verdicts": found}
            for kind, heading in HEADINGS.items()
            if (found := [verdict for verdict in report["verdicts"] if verdict["kind"] == kind])
        ],
        notes=report.get("notes", ()),
        steps=_steps(report["steps"]),
        has_core=any(ROUND in step["name"] for step in report["steps"]),
        histories=_histories(behaviour["histories"]),
        popularity=_popularity(behaviour["popularity"]),
        over_time=_over_time(times),
        times=times,
        splits=_splits(report["split"]),
        reached=report["baselines"],
        baselines=_baselines(report["baselines"]),
        fields=_fields(report["fields"]),
    )


def _opening(verdicts: Sequence[JsonObject]) -> str:
    warnings = sum(verdict["kind"] == "warning" for verdict in verdicts)
    if not warnings:
        return "No warnings: nothing was found that makes results wrong or worse."
    points = "One point" if warnings == 1 else f"{warnings} points"
    return f"{points} may make results wrong or worse: read {'it' if warnings == 1 else 'them'} before you train."


def _steps(steps: list[JsonObject]) -> Table:
    """Users, items and interactions after each step, with the share of what was read."""
    most, lines = whole(steps), []
    for step in steps:
        cells = [f"{step[key]:,} ({step[key] / most[key]:.0%})" for key in ("users", "items", "interactions")]
        lines.append([step["name"], *cells])
    return Table(["step", "users", "items", "interactions"], lines)


def _histories(histories: JsonObject) -> JsonObject:
    bins = histories["bins"]
    line = Line("users", range(len(bins)), [entry["users"] for entry in bins], COLOURS[1])
    ticks = [entry["name"] for entry in bins]
    return {**histories, "figure": Figure("users", plot([line], "interactions of a user", ticks))}


def _popularity(popularity: JsonObject) -> JsonObject:
    curve = popularity["curve"]
    drawn = [
        Line("this data", curve["items"], curve["interactions"], COLOURS[1]),
        Line("all items equally popular", [0.0, 1.0], [0.0, 1.0], "#999", dashed=True),
    ]
    axis = "share of the items, the most popular first"
    return {**popularity, "figure": Figure("share of the interactions", plot(drawn, axis), drawn)}


def _over_time(times: JsonObject | None) -> Figure | None:
    """Interactions over time; None without dates, or if all are of one day."""
    if not times or "over_time" not in times:
        return None
    over = times["over_time"]
    last = len(over["date"]) - 1
    ticks = [date if i % (last // 4 + 1) == last // 8 else "" for i, date in enumerate(over["date"])]
    line = Line("interactions", range(last + 1), over["count"], COLOURS[1])
    return Figure(f"interactions in each of {last + 1} equal parts of the time", plot([line], "", ticks))


def _splits(splits: JsonObject) -> Table:
    lines = []
    for name, facts in splits.items():
        line = [SPLIT_NAMES[name], f"{facts['examples']:,}", f"{facts['users']:,}"]
        shares = [f"{facts[key]:.1%}" if key in facts else "-" for key in ("in_history", "cold")]
        lines.append([*line, *shares])
    return Table(["part", "examples", "users", "target was in the history", "target never seen in training"], lines)


def _baselines(reached: JsonObject) -> Table:
    metrics = list(next(iter(reached["systems"].values()))[COLUMNS[0]])
    lines = [
        [SYSTEM_NAMES.get(system, system), COLUMN_NAMES[column], *(Estimate(**of[column][name]) for name in metrics)]
        for system, of in reached["systems"].items()
        for column in COLUMNS
    ]
    return Table(["shown", "items of the history", *metrics], lines)


def _fields(fields: JsonObject) -> Table:
    every = fields["items"]
    lines = [
        [
            column["name"],
            f"{column['missing']:,} ({column['missing'] / every:.1%})",
            "-" if column["different"] is None else f"{column['different']:,}",
        ]
        for column in fields["columns"]
    ]
    return Table(["column", "items without it", "different values"], lines)
