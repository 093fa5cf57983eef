"""Cells of a table turned into ids and numbers; a cell that is neither is a problem of the table, never a guess."""

from __future__ import annotations

import contextlib

import polars as pl

from llmrec.data.intake.cells.prices import with_points
from llmrec.data.intake.cells.text import is_missing
from llmrec.data.intake.cells.types import plain
from llmrec.data.intake.table import Table


def to_ids(table: Table, name: str) -> bool:
    """Turn a column into ids, which are text, and report the empty ones; False if its type has no ids."""
    cells = table.frame[name]
    with contextlib.suppress(pl.exceptions.PolarsError):
        cells = plain(cells)
    if not (cells.dtype.is_integer() or cells.dtype == pl.String):
        what = f"column {name} holds {table.frame.schema[name]}; ids are text or integers, so convert it."
        table.problems.append(f"{table.path}: {what}")
        return False
    table.frame = table.frame.with_columns(cells.cast(pl.String).replace("", None).alias(name))
    table.report(table.frame[name].is_null(), f"have an empty {name}", "fill in the id or drop the rows.")
    return True


def to_number(table: Table, name: str) -> None:
    """Turn a column into finite numbers, null where a cell is missing; `4,5` is one if all fractions have commas."""
    cells = table.frame[name]
    with contextlib.suppress(pl.exceptions.PolarsError):
        cells = plain(cells)
    if not (cells.dtype.is_numeric() or cells.dtype == pl.String):
        table.problems.append(f"{table.path}: column {name} holds {cells.dtype}; give numbers.")
        return
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars().replace("", None)
        cells = cells.set(is_missing(cells), None)
    if cells.dtype.is_float():
        cells = cells.fill_nan(None)
    numbers = cells.cast(pl.Float64, strict=False)
    if cells.dtype == pl.String and numbers.null_count() > cells.null_count():
        numbers = with_points(cells).cast(pl.Float64, strict=False)
    given = cells.is_not_null()
    table.report(given & ~numbers.is_finite().fill_null(False), f"have a {name} that is no number", "correct it.", name)
    table.frame = table.frame.with_columns(numbers.alias(name))
