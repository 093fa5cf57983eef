"""Layout: what is known about a public kind of file, beyond what the file says itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

MOST = 0.8  # share of the first lines that must be those of a layout


@dataclass(frozen=True)
class Layout:
    """Facts about a public kind of file.

    A text file is known by `line`, which most of its first lines match, and by `file`, a part of its name; a table is
    known by `has`, the names of some of its columns.

    Attributes:
        name: What the terminal calls it.
        line: Pattern of whole lines; "" if lines do not tell.
        file: Pattern in the name of the file; "" if any name will do.
        has: Columns that the table has.
        separator: Text between two cells; None leaves it to detection.
        header: Names of the columns; None if the first line of the file has them.
        header_lines: Number of lines before the first row of a file whose columns `header` names.
        encoding: Encoding of text that is not UTF-8.
        rows: Function from the text of a file that is no table, such as `user item item …`, to its rows.
        columns: Name of llmrec (`USER_ID`, `TITLE`, …) -> name of the column after `reshape`, where it is another.
        keep: Columns that are read; None for all. Columns of this list that a file lacks are skipped.
        rename: Name of a column in the file -> its name here.
        reshape: Function from these columns, as text, to the rows that the layout means.
        order_only: True if the rows of each user are in order and have no times.
        limit: Sentence about what is not read, or read in one way of several.
    """

    name: str
    line: str = ""
    file: str = ""
    has: frozenset[str] = frozenset()
    separator: str | None = None
    header: tuple[str, ...] | None = None
    header_lines: int = 0
    encoding: str = "utf-8"
    rows: Callable[[str], pl.DataFrame] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    reshape: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    order_only: bool = False
    limit: str = ""

    def fits_lines(self, file_name: str, lines: Sequence[str]) -> bool:
        """True if the name of a text file, its first line and most of its first lines are those of the layout.

        A damaged line does not make a file another one: it is reported as a row.
        """
        if not self.line or not re.search(self.file, file_name, re.IGNORECASE):
            return False
        fits = [re.fullmatch(self.line, line) is not None for line in lines if line.strip()]
        return bool(fits) and fits[0] and sum(fits) >= MOST * len(fits)

    def fits_names(self, names: Collection[str]) -> bool:
        """True if the columns of a table are those of the layout."""
        return bool(self.has) and self.has <= set(names)

    @property
    def note(self) -> str:
        """Sentence for the terminal."""
        return f"read as {self.name}." + (f" {self.limit}" if self.limit else "")
