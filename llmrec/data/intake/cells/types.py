"""Types of the columns of a parquet file, brought to the few that the rest of llmrec reads."""

from __future__ import annotations

import polars as pl
from polars.datatypes import DataType


def plain(cells: pl.Series) -> pl.Series:
    """Bring a column to a plain type without changing its values.

    Categories, enumerations, UTF-8 bytes and columns without any value become text, decimals and half floats become
    floats, arrays become lists, and lists of lists become one list with each value once. Other types stay.

    Raises:
        polars.exceptions.PolarsError: If bytes are not UTF-8, or polars cannot convert the type.

    >>> plain(pl.Series([[["a", "b"], ["a", "c"]], None])).to_list()
    [['a', 'b', 'c'], None]
    """
    if isinstance(cells.dtype, pl.BaseExtension):
        cells = cells.ext.storage()
    cells = cells.cast(_plain_type(cells.dtype))
    nested = False
    while isinstance(cells.dtype, pl.List) and isinstance(cells.dtype.inner, pl.List):
        nested, cells = True, cells.list.eval(pl.element().explode())
    return cells.list.unique(maintain_order=True).list.drop_nulls() if nested else cells


def holds_records(dtype: DataType) -> bool:
    """True for structs, maps and objects, and for lists of these."""
    while isinstance(dtype, pl.List | pl.Array):
        dtype = dtype.inner  # type: ignore[assignment]
    return isinstance(dtype, pl.Struct | pl.Map | pl.Object)


def _plain_type(dtype: DataType) -> DataType:
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain_type(dtype.inner))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Binary | pl.Null):
        return pl.String()
    if isinstance(dtype, pl.Decimal):
        return pl.Float64()
    return pl.Float32() if isinstance(dtype, pl.Float16) else dtype
