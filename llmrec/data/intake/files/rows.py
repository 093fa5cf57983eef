"""Rows of a file or of the parts of a directory: the names of the columns, and a way to read some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl


class Read(Protocol):
    """Function from names of columns to the rows, or the first of them, with these columns in this order."""

    def __call__(self, columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        """Read all rows, or the first `limit` ones."""
        ...


UNNAMED = "unnamed column "


@dataclass
class Rows:
    """A file whose columns are known and whose rows are not read yet.

    Attributes:
        path: The file or directory.
        names: Names of the columns, blanks around them removed, in the order of the file.
        read: Function that reads columns.
        place: Function from the number of a row, from 0, and the number of rows to what a message calls it: "line 7".
        layout: Name of the public layout of the file, if it has one.
        columns: Name of llmrec -> name of the column, where the layout has another.
        others: Columns that the layout leaves out, which are read if an option names them.
        order_only: True if the layout has no times and the rows of each user are in order.
        is_delimited: True for text with a separator between its cells.
        decimal_comma: True if numbers may have a comma before their fraction, because the separator is none.
        nested: Columns of JSON that hold a list or an object -> place of the first one, once they are read.
        notes: Sentences for the terminal about how the file was read.
    """

    path: Path
    names: list[str]
    read: Read
    place: Callable[[int, int], str]
    layout: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()
    order_only: bool = False
    is_delimited: bool = False
    decimal_comma: bool = False
    nested: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def numbered(row: int, height: int) -> str:
    """Place of a row in a file that has no lines."""
    return f"row {row + 1}"


def looks_like_a_row(names: Sequence[str]) -> bool:
    """True if no name of a column has a letter, but each a digit; T and Z are in times."""
    return bool(names) and all(re.fullmatch(r"[\d.,:TZ+-]*\d[\d.,:TZ+-]*", name) for name in names)


def clean_names(path: Path, header: Sequence[str]) -> list[str]:
    """Names of columns without the blanks around them.

    Raises:
        ValueError: If a name stands twice, or the header is a row.
    """
    names = [name.strip() for name in header]
    if looks_like_a_row(names):
        raise ValueError(
            f"{path} has no header, but the row {', '.join(names[:8])}; put a line with the names of the columns first."
        )
    twice = [name for place, name in enumerate(names) if name and name in names[:place]]
    if twice:
        raise ValueError(f"{path} has two columns '{twice[0]}'; rename one of them.")
    # The index that pandas writes has no name; it numbers the rows, so nothing may be learned from it.
    return [name or f"{UNNAMED}{place + 1}" for place, name in enumerate(names)]
