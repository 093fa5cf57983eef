"""How a tokenizer was trained, for the page: the loss and the method's own signs over the steps.

The log of a training is a list of readings: step, loss, and what the method adds (`Objective.watch`), each a number, a
number per level, or numbers by name.
"""

from __future__ import annotations

from typing import Any

from llmrec.reports.html import figure, grid
from llmrec.reports.svg import COLOURS, Line, legend, plot
from llmrec.runtime.manifest import JsonObject

MOST_POINTS = 60  # of a line; every point is a mark with its value
STEP = "step"


def training_section(trainings: list[list[JsonObject]] | None) -> str:
    """Plots of each training; empty for a method without any."""
    if not trainings:
        return ""
    titled = [
        ("Training" if len(trainings) == 1 else f"Training {number + 1} of {len(trainings)}", thinned(readings))
        for number, readings in enumerate(trainings)
    ]
    note = "<p>Every reading of the loss that ends training, the first before the first step"
    note += ", and signs of a sample of the items.</p>" if len(trainings[0][0]) > 2 else ".</p>"
    return "".join(f"<h2>{title}</h2>{note}{grid(plots(readings))}" for title, readings in titled)


def thinned(readings: list[JsonObject]) -> list[JsonObject]:
    """At most about MOST_POINTS readings, evenly taken, the last among them."""
    every = -(-len(readings) // MOST_POINTS)
    return readings[::-1][::every][::-1]


def plots(readings: list[JsonObject]) -> list[str]:
    """A figure for each thing that was read."""
    drawn = []
    for name in (name for name in readings[0] if name != STEP):
        lines = lines_of(name, readings)
        names = legend(lines) if len(lines) > 1 else ""
        shown = plot(lines, "optimiser step", from_zero=name != "loss")
        drawn.append(names + figure(name.replace("_", " "), shown))
    return drawn


def lines_of(name: str, readings: list[JsonObject]) -> list[Line]:
    """One line for a number; one per level, or per name, for several."""
    steps, values = [reading[STEP] for reading in readings], [parts(name, reading[name]) for reading in readings]
    return [
        Line(part, steps, [value[part] for value in values], COLOURS[place % len(COLOURS)])
        for place, part in enumerate(values[0])
    ]


def parts(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, dict):
        return value
    return {f"level {level}": each for level, each in enumerate(value)} if isinstance(value, list) else {name: value}
