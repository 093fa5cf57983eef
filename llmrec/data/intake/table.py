"""Table: the rows of one file under llmrec's column names and the problems found in them so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from llmrec.data.intake.files.rows import Rows


@dataclass
class Table:
    """Rows of a file, as they are converted column by column.

    Attributes:
        rows: The opened file, which knows the place of each row.
        frame: The rows; every row of the file, in its order.
        problems: One message for each kind of bad row, all of which are raised together.
    """

    rows: Rows
    frame: pl.DataFrame
    problems: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """File or directory of the rows."""
        return self.rows.path

    def note(self, sentence: str) -> None:
        """Add a sentence about how the file was read."""
        self.rows.notes.append(f"{self.path}: {sentence}")

    def report(self, bad: pl.Series, what: str, remedy: str, value: str | None = None) -> None:
        """Add a problem about the rows where `bad` is true: how many, the first one, its value, and the remedy.

        Args:
            bad: True for these rows.
            what: What they do, as a clause that begins with a verb in the plural, such as `have no time`.
            remedy: What to do.
            value: Column whose first bad cell is shown.
        """
        rows = bad.arg_true()
        if len(rows):
            cell = self.frame[value][rows[0]] if value else None
            given = "" if cell is None else f" ({cell!r})"
            place = self.rows.place(rows[0], self.frame.height)
            verb, _, rest = what.partition(" ")
            one = f"1 row {'has' if verb == 'have' else verb + 's'} {rest}"
            many = one if len(rows) == 1 else f"{len(rows):,} rows {what}"
            self.problems.append(f"{self.path}: {many}, first at {place}{given}; {remedy}")
