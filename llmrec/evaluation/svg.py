"""Line plots as inline SVG: a few lines of our own, so that a report needs no plotting library, script or network.

Every mark carries its value as a `<title>`, which browsers show under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 50
# Okabe and Ito's palette, told apart also without colour vision; ours is the first, in every plot.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#6a51a3", "#8c564b", "#17becf")


class Line(NamedTuple):
    """One line of a plot.

    Attributes:
        name: As the legend has it.
        x: Ascending.
        y: As many.
        colour: CSS colour.
        low: Lower ends of intervals, as many as y, or none.
        high: Upper ends.
        dashed: For what is no system.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


def plot(lines: Sequence[Line], x_label: str, ticks: Sequence[str] = (), from_zero: bool = True) -> str:
    """SVG element of lines over one x axis.

    Args:
        lines: At least one, each with a point.
        x_label: Under the axis.
        ticks: Labels of x = 0, 1, …; what follows a newline stands below in grey. Numbers are marked where left out.
        from_zero: Whether the y axis starts at 0 or at the smallest value.
    """
    values = [value for line in lines for value in (*line.y, *line.low, *line.high)]
    y_ticks = nice_ticks(0.0 if from_zero else min(values), max(values))
    first, last = (0, len(ticks) - 1) if ticks else (min(x for s in lines for x in s.x), max(lines[0].x))
    margin = 0.5 if ticks else 0.0
    span = max(last - first, 0 if ticks else 1e-9) + 2 * margin

    def across(x: float) -> float:
        return LEFT + (x - first + margin) / span * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    marks = [_y_tick(y, up(y)) for y in y_ticks]
    marks += [_x_tick(label, across(x)) for x, label in enumerate(ticks)] or [
        _x_tick(f"{x:g}", across(x)) for x in nice_ticks(first, last) if first <= x <= last
    ]
    marks.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for line in reversed(lines):  # the first lies on top
        marks += _line(line, [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)])
        for x, low, high in zip(line.x if line.low else (), line.low, line.high, strict=True):
            ends = f'x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}"'
            marks.append(f'<line {ends} stroke="{line.colour}" stroke-width="2" opacity="0.5"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="11">{"".join(marks)}</svg>'


def legend(lines: Sequence[Line]) -> str:
    """HTML paragraph that names the lines by their colours."""
    border = [("dashed" if line.dashed else "solid", line.colour, escape(line.name)) for line in lines]
    names = [f'<span><i style="border-top:3px {style} {colour}"></i>{name}</span>' for style, colour, name in border]
    return f'<p class="legend">{"".join(names)}</p>'


def nice_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose both, three to twelve; equal values are given room."""
    if high - low <= 1e-9 * max(abs(low), 1e-3):
        high = low + max(abs(low), 1.0)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= raw * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _line(line: Line, points: list[tuple[float, float]]) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    marks = [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>']
    for i, (x, y) in enumerate(points):
        title = f"{escape(line.name)}: {line.y[i]:.4g}"
        if line.low:
            title += f" [{line.low[i]:.4g}, {line.high[i]:.4g}]"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"><title>{title}</title></circle>')
    return marks


def _y_tick(value: float, y: float) -> str:
    grid = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>'
    return f'{grid}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'


def _x_tick(label: str, x: float) -> str:
    above, _, below = label.partition("\n")
    text = f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(above)}</text>'
    if below:
        y = HEIGHT - BOTTOM + 29
        text += f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="#777" font-size="9">{escape(below)}</text>'
    return text
