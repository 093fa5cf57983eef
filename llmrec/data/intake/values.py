"""Cells of a table turned into ids and numbers; a cell that is neither is a problem of the table, never a guess."""

from __future__ import annotations

import polars as pl

from llmrec.data.intake.table import Table


def to_ids(table: Table, name: str) -> bool:
    """Turn a column into ids, which are text, and report the empty ones; False if its type has no ids."""
    dtype = table.frame.schema[name]
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        table.problems.append(f"{table.path}: column {name} holds {dtype}; ids are text or integers, so convert it.")
        return False
    table.frame = table.frame.with_columns(pl.col(name).cast(pl.String, strict=False).replace("", None))
    table.report(table.frame[name].is_null(), f"have an empty {name}", "fill in the id or drop the rows.")
    return True


def to_number(table: Table, name: str) -> None:
    """Turn a column into finite numbers, null where a cell is empty."""
    dtype = table.frame.schema[name]
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        table.problems.append(f"{table.path}: column {name} holds {dtype}; give numbers.")
        return
    number = table.frame[name].cast(pl.Float64, strict=False)
    given = table.frame[name].is_not_null()
    table.report(given & ~number.is_finite().fill_null(False), f"have a {name} that is no number", "correct it.", name)
    table.frame = table.frame.with_columns(number)
