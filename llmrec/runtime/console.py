"""Printing: the results of a stage on stdout; messages and progress bars on stderr.

A stage is silent about its result until it has one. `llmrec` then calls its `show`, which prints by `tell` and `table`,
or prints the result as JSON. So `llmrec … > file` keeps the result and nothing else.

Titles and ids come from files of others. Whatever is printed here is text: no markup, no emoji codes, and no character
that moves the cursor, starts a line or turns the direction of writing (`inert`).

`LLMREC_QUIET=1` silences messages and bars. `NO_COLOR` and `COLUMNS` mean what they mean elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import NoReturn, TypeVar

from rich import box
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
from llmrec.runtime.terminal import inert

T = TypeVar("T")
_display: Progress | None = None  # the bars that are on the screen


class PlainConsole(Console):
    """Console that prints text as it is: rich would take "[/x]" in a title for its markup, and ":x:" for an emoji.

    Args:
        stderr: Write to stderr instead of stdout.
    """

    def __init__(self, stderr: bool = False):
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """Let the error pass, which rich would turn into an exit of its own."""
        raise


def is_quiet() -> bool:
    """True under LLMREC_QUIET and in every process but the first of an `accelerate launch`: no messages, no bars."""
    return bool(os.environ.get("LLMREC_QUIET")) or not processes.is_main()


def has_screen() -> bool:
    """True if a person may watch stderr; a log gets no progress bars."""
    return not is_quiet() and sys.stderr.isatty()


def say(text: str) -> None:
    """Print a message on stderr, on one line."""
    if not is_quiet():
        PlainConsole(stderr=True).print(inert(text), soft_wrap=True)  # the terminal wraps; a log keeps a path whole


def tell(text: str) -> None:
    """Print a line of a result on stdout."""
    PlainConsole().print(inert(text), soft_wrap=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table of a result on stdout under its title; numbers are right-aligned, floats have four digits."""
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows = [list(row) for row in rows]
    for i, name in enumerate(header):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        grid.add_column(inert(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else inert(str(cell)) for cell in row))
    console = PlainConsole()
    console.print()
    console.print(inert(title), style="bold", soft_wrap=True)
    console.print(grid)


class Speed(ProgressColumn):
    """Units per second in the latest time."""

    def render(self, task: Task) -> Text:
        """Return the speed of a task as text, empty while it is unknown."""
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")


@contextlib.contextmanager
def bar(description: str, total: int | None, unit: str = "", done: int = 0) -> Iterator[Callable[..., None]]:
    """Show a bar with speed, elapsed and remaining time, which vanishes at the end; a log gets none.

    A bar within another one is a second line of the same display.

    Args:
        description: Text before the bar.
        total: Units at the end; None if unknown.
        unit: Name of the units.
        done: Units at the start.

    Yields:
        Function that takes `advance` (a number of units) or `description` (a new text).
    """
    global _display
    outer, display = _display, _display or _new_display()
    task = display.add_task(inert(description), total=total, completed=done, unit=unit)

    def update(advance: float | None = None, description: str | None = None) -> None:
        display.update(task, advance=advance, description=None if description is None else inert(description))

    try:
        if outer is None:
            _display = display
            display.start()  # Ctrl-C may come while it draws for the first time
        yield update
    finally:
        if outer is None:
            display.stop()
            _display = None
        else:
            display.remove_task(task)


def _new_display() -> Progress:
    label, unit = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[unit]}"))
    columns = (label, BarColumn(), MofNCompleteColumn(), unit, Speed(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=PlainConsole(stderr=True), transient=True, disable=not has_screen())


def progress(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "",
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Yield the items under a `bar`.

    Args:
        items: Items to yield.
        description: Text before the bar.
        total: Units of all items; the length of `items` by default.
        unit: Name of the units.
        size: Function that gives the units of an item.
    """
    with bar(description, total if total is not None else length_hint(items) or None, unit) as update:
        for item in items:
            yield item
            update(advance=size(item))
