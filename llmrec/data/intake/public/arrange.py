"""Rows of a file, arranged as its public layout says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from llmrec.data.intake.files.rows import Rows, numbered
from llmrec.data.intake.public.layout import Layout


def arrange(rows: Rows, layout: Layout) -> Rows:
    """Give rows the columns of a layout.

    Args:
        rows: The opened file.
        layout: Layout of the file.

    Returns:
        Rows whose columns are those that the layout keeps or makes of them.

    Raises:
        ValueError: When they are read, if the file is not what the layout says.
    """
    kept = [name for name in rows.names if layout.keep is None or name in layout.keep]
    given = {layout.rename.get(name, name): name for name in kept}

    def renamed(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        table = rows.read([given[name] for name in columns], limit)
        return table.rename(dict(zip(table.columns, columns, strict=True)))

    arranged = replace(rows, names=list(given), read=renamed, notes=[*rows.notes])
    _tell(arranged, layout)
    if layout.reshape is None:
        return arranged
    reshape, heights = layout.reshape, set()

    @cache
    def whole() -> pl.DataFrame:
        table = renamed(list(given))
        heights.add(table.height)
        return shaped(rows.path, layout, lambda: reshape(table))

    def read(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        table = whole().select(columns)
        return table if limit is None else table.head(limit)

    def place(row: int, height: int) -> str:
        return rows.place(row, height) if height in heights else numbered(row, height)

    empty = pl.DataFrame(schema=dict.fromkeys(given, pl.String))
    arranged.names, arranged.read, arranged.place = reshape(empty).columns, read, place
    return arranged


def rows_of_text(path: Path, layout: Layout, text: str) -> Rows:
    """Rows of a file that is no table, such as `user item item …`.

    Raises:
        ValueError: If the file is not what the layout says.
    """
    assert layout.rows is not None
    make = layout.rows
    table = shaped(path, layout, lambda: make(text))

    def read(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        return table.select(columns).head(table.height if limit is None else limit)

    rows = Rows(path, table.columns, read, numbered)
    _tell(rows, layout)
    return rows


def _tell(rows: Rows, layout: Layout) -> None:
    rows.layout, rows.columns, rows.order_only = layout.name, layout.columns, layout.order_only
    rows.notes.append(f"{rows.path}: {layout.note}")


def shaped(path: Path, layout: Layout, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """Rows that a function of a layout makes; its errors name the file.

    Raises:
        ValueError: If the file is not what the layout says.
    """
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    except PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} looks like {layout.name}, but cannot be read so ({reason}).") from None
