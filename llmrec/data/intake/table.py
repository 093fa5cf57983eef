"""Table: the rows of one file under llmrec's column names, and every problem found in them so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl


@dataclass
class Table:
    """Rows of a file and the problems found in them so far."""

    path: Path
    frame: pl.DataFrame
    has_lines: bool
    problems: list[str]

    def place(self, row: int) -> str:
        """Line of a row in a CSV without line breaks in cells, else the number of the row, from 1."""
        return f"line {row + 2}" if self.has_lines else f"row {row + 1}"

    def report(self, bad: pl.Series, what: str, remedy: str, value: str | None = None) -> None:
        """Add a problem about the rows where `bad` is true: how many, the first one, its value, and the remedy."""
        rows = bad.arg_true()
        if len(rows):
            given = f" ({self.frame[value][rows[0]]!r})" if value else ""
            self.problems.append(
                f"{self.path}: {len(rows)} rows {what}, first at {self.place(rows[0])}{given}; {remedy}"
            )
