"""Public layouts: files that say too little by themselves, such as ones without a header, known by name and content.

`files.py` asks `of_lines` before it guesses a separator or reads a header, and `choose.py` asks `of_names` before it
looks for common names of columns. An option that the user gives goes before both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from llmrec.data.columns import ITEM_ID, TIMESTAMP, USER_ID, WEIGHT


@dataclass(frozen=True)
class Layout:
    """Facts about a public kind of file.

    Attributes:
        name: What the terminal calls it.
        separator: Text between two cells; None leaves it to detection.
        header: Names of the columns; None if the first line of the file has them.
        header_lines: Number of lines before the first row of a file whose columns `header` names.
        columns: Name of llmrec (`USER_ID`, `TITLE`, …) -> name of the column in the file.
        encoding: Encoding of the text, if it is not UTF-8.
        rows: Function from the text of a file that is no table, such as `user item item …`, to its rows.
        order_only: True if the rows of each user are in order and have no times.
    """

    name: str
    separator: str | None = None
    header: tuple[str, ...] | None = None
    header_lines: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    rows: Callable[[str], pl.DataFrame] | None = None
    order_only: bool = False


MOVIELENS_RATINGS = Layout(
    "MovieLens ratings",
    separator="::",
    header=("user", "movie", "rating", "timestamp"),
    columns={USER_ID: "user", ITEM_ID: "movie", TIMESTAMP: "timestamp", WEIGHT: "rating"},
)


def of_lines(file_name: str, lines: Sequence[str]) -> Layout | None:
    """Layout of a text file, by its name and first lines.

    Args:
        file_name: Name without folder and without the ending of a compression.
        lines: At most the first 20 lines, without line ends; at least one.

    Returns:
        The layout, or None for a file that is not known.
    """
    if all(re.fullmatch(r"\d+::\d+::[\d.]+::\d+", line) for line in lines):
        return MOVIELENS_RATINGS
    return None


def of_names(names: Collection[str]) -> Mapping[str, str]:
    """Columns of a public table with a header, by the names of all its columns; empty if it is not known.

    Args:
        names: Names of the columns, blanks around them removed.

    Returns:
        Name of llmrec -> name of the column, for columns whose common names would be ambiguous.
    """
    if {"asin", "parent_asin"} <= set(names):  # Amazon 2023: the item file has one row per parent_asin
        return {ITEM_ID: "parent_asin"}
    return {}
