"""Progress bars, tables and messages on stderr; silent under `--json` and in all processes but the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from llmrec.runtime import processes

T = TypeVar("T")


def is_quiet() -> bool:
    """True under `--json` and in every process but the first of an `accelerate launch`."""
    return bool(os.environ.get("LLMREC_QUIET")) or not processes.is_main()


def console() -> Console:
    """Console on stderr that prints paths and titles as they are."""
    # Paths and titles are shown as they are: rich would take "[/x]" in one for its markup, and ":x:" for an emoji.
    return Console(stderr=True, quiet=is_quiet(), markup=False, emoji=False)


def say(text: str) -> None:
    """Print a message."""
    console().print(text, highlight=False, soft_wrap=True)  # the terminal wraps; a log keeps a path in one piece


class Speed(ProgressColumn):
    """Units per second in the latest time."""

    def render(self, task: Task) -> Text:
        """Return the speed of a task as text, empty while it is unknown."""
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")


def progress(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "",
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Yield the items under a progress bar with speed, elapsed and remaining time; a log gets no bar.

    Args:
        items: Items to yield.
        description: Text before the bar.
        total: Units of all items; the length of `items` by default.
        unit: Name of the units.
        size: Function that gives the units of an item.
    """
    shown = console()
    counted = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), Speed())
    columns = (*counted, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task(description, total=total if total is not None else length_hint(items) or None)
        for item in items:
            yield item
            bar.advance(task, size(item))


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers are right-aligned, floats have four digits."""
    grid = Table(title=title, title_justify="left")
    rows = [list(row) for row in rows]
    for i, name in enumerate(header):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    console().print(grid)
