"""The time column: numbers stay as they are, ISO dates become unix seconds, other orders of dates are refused."""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import TIMESTAMP
from llmrec.data.intake.table import Table


def to_time(table: Table) -> None:
    """Convert dates to unix seconds, with a fraction if they have one; numbers stay as they are."""
    time, dtype = table.frame[TIMESTAMP], table.frame.schema[TIMESTAMP]
    if dtype == pl.String:
        time = _parse_time(time)
    elif not (dtype.is_integer() or dtype.is_float() or dtype in (pl.Date, pl.Datetime)):
        table.problems.append(f"{table.path}: column {TIMESTAMP} holds {dtype}; use numbers or dates.")
        return
    if time.dtype in (pl.Date, pl.Datetime):
        time = time.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    bad = ~time.is_finite().fill_null(False)
    table.report(bad, "have no readable timestamp", "use a number or an ISO date (2012-04-03 14:04:01).", TIMESTAMP)
    table.frame = table.frame.with_columns(time.alias(TIMESTAMP))


def _parse_time(text: pl.Series) -> pl.Series:
    """Parse text as integers if all rows are, else as decimals or ISO dates, whichever reads more rows."""
    integers = text.cast(pl.Int64, strict=False)
    if not integers.has_nulls():
        return integers
    iso = text.set(~text.str.contains(r"^\d{4}-\d{2}-\d{2}"), None)
    try:
        dates = iso.str.to_datetime(time_unit="us", strict=False)
    except pl.exceptions.ComputeError:  # polars finds no date format in any row
        dates = text.clear(len(text)).cast(pl.Datetime("us"))
    return min(text.cast(pl.Float64, strict=False), dates, key=pl.Series.null_count)
