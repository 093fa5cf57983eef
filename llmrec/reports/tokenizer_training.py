"""The training of a tokenizer, for its page: the loss and the metrics of the method over the steps.

The log of a training is a list of entries: step, loss, and the metrics of the method (`Objective.watch`). A metric is a
number, one number per level, or numbers by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.reports.pages import Figure
from llmrec.reports.svg import COLOURS, Line, plot
from llmrec.runtime.manifest import JsonObject

MOST_POINTS = 60  # of a line; every point is a mark with its value
STEP = "step"


def trainings(logs: Sequence[Sequence[JsonObject]] | None) -> list[JsonObject]:
    """Title and figures of each training; empty for a method that is not trained."""
    logs = logs or []
    return [
        {
            "title": "Training" if len(logs) == 1 else f"Training {number + 1} of {len(logs)}",
            "has_metrics": len(log[0]) > 2,
            "figures": figures(thinned(log)),
        }
        for number, log in enumerate(logs)
    ]


def thinned(log: Sequence[JsonObject]) -> Sequence[JsonObject]:
    """About MOST_POINTS entries at most, at even distances, with the last entry."""
    every = -(-len(log) // MOST_POINTS)
    return log[::-1][::every][::-1]


def figures(log: Sequence[JsonObject]) -> list[Figure]:
    """A figure for the loss and for each metric."""
    drawn = []
    for name in (name for name in log[0] if name != STEP):
        lines = lines_of(name, log)
        svg = plot(lines, "optimiser step", from_zero=name != "loss")
        drawn.append(Figure(name.replace("_", " "), svg, legend=lines if len(lines) > 1 else ()))
    return drawn


def lines_of(name: str, log: Sequence[JsonObject]) -> list[Line]:
    """One line for a number; one line per level or per name for several numbers."""
    steps, values = [entry[STEP] for entry in log], [_by_name(name, entry[name]) for entry in log]
    return [
        Line(part, steps, [value[part] for value in values], COLOURS[place % len(COLOURS)])
        for place, part in enumerate(values[0])
    ]


def _by_name(name: str, value: float | list[float] | dict[str, float]) -> dict[str, float]:
    if isinstance(value, dict):
        return value
    return {f"level {level}": each for level, each in enumerate(value)} if isinstance(value, list) else {name: value}
