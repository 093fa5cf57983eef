"""Fields of the items: how many have a title and a text, and how full and how varied each other column is."""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import ITEM_ID, TEXT, TITLE
from llmrec.runtime.manifest import JsonObject


def field_facts(items: pl.DataFrame) -> JsonObject:
    """Missing cells and different values of each column of the items.

    Args:
        items: One row per item; at least one.

    Returns:
        items; no_title, no_text: number of items without; same_title: items that share their title with another one;
        columns: name, missing and different of each column but item_id.
    """
    columns = [
        {"name": name, "missing": int(missing(items[name]).sum()), "different": different(items[name])}
        for name in items.columns
        if name != ITEM_ID
    ]
    empty = {entry["name"]: entry["missing"] for entry in columns}
    titles = items[TITLE].drop_nulls() if TITLE in items.columns else pl.Series([], dtype=pl.String)
    return {
        "items": items.height,
        "no_title": empty.get(TITLE, items.height),
        "no_text": empty.get(TEXT, items.height),
        "same_title": int(titles.is_duplicated().sum()),
        "columns": columns,
    }


def missing(column: pl.Series) -> pl.Series:
    """True for cells that say nothing: null, NaN, blank text, an empty list or a list of such cells."""
    if isinstance(column.dtype, pl.List):
        inner = column.list.drop_nulls()
        return column.is_null() | (inner.list.len() == 0).fill_null(True)
    if column.dtype == pl.String:
        return column.is_null() | (column.str.strip_chars() == "").fill_null(True)
    if column.dtype.is_float():
        return column.is_null() | column.is_nan().fill_null(True)
    return column.is_null()


def different(column: pl.Series) -> int | None:
    """Number of different values that say something; None for values that cannot be compared."""
    try:
        return int(column.filter(~missing(column)).n_unique())
    except pl.exceptions.PolarsError:
        return None
