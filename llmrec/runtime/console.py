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
import re
import sys
import warnings
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

T = TypeVar("T")
# Read by the libraries when they are imported.
QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
# Controls of C0 and C1, ends of lines, lone surrogates, and characters that turn the direction of what follows.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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


def inert(text: str) -> str:
    r"""Text that cannot do anything to a terminal: unsafe characters are written out.

    >>> print(inert("Saw\x1b[2J\n   1  0.0  Jaws"))
    Saw\x1b[2J\n   1  0.0  Jaws
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


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


@contextlib.contextmanager
def libraries_kept_quiet() -> Iterator[None]:
    """Keep what libraries print off stdout, and their warnings, log lines and bars off the terminal.

    Variables of the environment and Python's `-W` that somebody has set hold all the same.
    """
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


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
    label = TextColumn("{task.description}", markup=False)
    counted = (label, BarColumn(), MofNCompleteColumn(), TextColumn(unit, markup=False), Speed())
    columns = (*counted, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True, disable=not has_screen()) as bar:
        task = bar.add_task(inert(description), total=total if total is not None else length_hint(items) or None)
        for item in items:
            yield item
            bar.advance(task, size(item))
