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
    given = {layout.rename.get(name, name): name for name in rows.names}
    kept = [name for name in given if layout.keep is None or name in layout.keep]
    change = layout.reshape or pl.DataFrame.clone
    heights: set[int] = set()

    def renamed(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        table = rows.read([given[name] for name in columns], limit)
        return table.rename(dict(zip(table.columns, columns, strict=True)))

    @cache
    def reshaped(columns: tuple[str, ...]) -> pl.DataFrame:
        table = renamed(columns)
        heights.add(table.height)
        return shaped(rows.path, layout, lambda: change(table))

    def read(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        if layout.reshape is None:
            return renamed(columns, limit)
        table = reshaped(tuple(kept if set(columns) <= set(names) else given)).select(columns)
        return table if limit is None else table.head(limit)

    def place(row: int, height: int) -> str:
        return rows.place(row, height) if layout.reshape is None or height in heights else numbered(row, height)

    names, everything = (change(pl.DataFrame(schema=dict.fromkeys(part, pl.String))).columns for part in (kept, given))
    others = [name for name in everything if name not in names]
    arranged = replace(rows, names=names, others=others, read=read, place=place, notes=[*rows.notes])
    _tell(arranged, layout)
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
