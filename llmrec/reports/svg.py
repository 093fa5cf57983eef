"""Line plots as inline SVG, so that a page needs no plotting library, script or network.

Every mark has its value as a `<title>`, which browsers show under the pointer. The drawing is 460 units wide and scales
with the page, so that text of 11 units is 9 px high on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 50
# The palette of Okabe and Ito, which is distinct without colour vision too. The first colour is ours in every plot.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#6a51a3", "#8c564b", "#17becf")


class Line(NamedTuple):
    """One line of a plot.

    Attributes:
        name: Name in the legend.
        x: Ascending values.
        y: As many values.
        colour: CSS colour.
        low: Lower ends of intervals, as many as y, or none.
        high: Upper ends.
        dashed: True for a line that is not a system.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


def plot(
    lines: Sequence[Line], x_label: str, ticks: Sequence[str] = (), from_zero: bool = True, log_x: bool = False
) -> str:
    """Draw lines over one x axis.

    Args:
        lines: At least one line, each with at least one point.
        x_label: Text under the axis.
        ticks: Labels of x = 0, 1, …; the text after a newline is placed below in grey. The default is numbers.
        from_zero: True if the y axis starts at 0, False if it starts at the smallest value.
        log_x: True for a logarithmic x axis; x must be positive, and `ticks` empty.

    Returns:
        An SVG element.
    """
    values = [value for line in lines for value in (*line.y, *line.low, *line.high)]
    y_ticks = nice_ticks(0.0 if from_zero else min(values), max(values))
    places = [x for line in lines for x in line.x]
    x_ticks = range(len(ticks)) if ticks else (log_ticks if log_x else nice_ticks)(min(places), max(places))
    scale, margin = math.log10 if log_x else float, 0.5 if ticks else 0.0
    first, last = scale(x_ticks[0]) - margin, scale(x_ticks[-1]) + margin

    def across(x: float) -> float:
        return LEFT + (scale(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    marks = [_y_tick(f"{y:.{decimals}f}", up(y)) for y in y_ticks]
    marks += [_x_tick(label, across(x)) for x, label in zip(x_ticks, ticks or map(short, x_ticks), strict=True)]
    marks.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for line in reversed(lines):  # the first line is drawn on top
        marks += _line(line, [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)])
        for x, low, high in zip(line.x if line.low else (), line.low, line.high, strict=True):
            ends = f'x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}"'
            marks.append(f'<line {ends} stroke="{line.colour}" stroke-width="2" opacity="0.5"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="11" fill="#444">{"".join(marks)}</svg>'


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to twelve multiples of 1, 2 or 5 times a power of ten that enclose both values, which may be equal."""
    if high - low <= 1e-9 * max(abs(low), 1e-3):
        high = low + max(abs(low), 1.0)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= raw * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Two or more of 1, 2 and 5 times powers of ten that enclose both values; only powers beyond a factor of 1,000."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)  # log10 may round up to the next
    ticks = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if high < 1000 * low else (1,))]
    first = max(i for i, tick in enumerate(ticks) if tick <= low)
    last = next(i for i, tick in enumerate(ticks) if tick >= high and i > first)
    return ticks[first : last + 1]


def short(number: float) -> str:
    """A number in few characters: 9,999 or 12k or 3.4M."""
    if number >= 1e6:
        return f"{round(number / 1e6, 1):,g}M"
    return f"{number / 1e3:,.0f}k" if number >= 1e4 else f"{number:,g}"


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


def _y_tick(label: str, y: float) -> str:
    grid = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>'
    return f'{grid}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _x_tick(label: str, x: float) -> str:
    above, _, below = label.partition("\n")
    text = f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(above)}</text>'
    if below:
        y = HEIGHT - BOTTOM + 31
        text += f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="#777" font-size="10">{escape(below)}</text>'
    return text
