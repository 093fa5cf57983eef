"""Side fields of items: the categorical columns of items.parquet, whose values several items share.

A column is a side field if it holds text, integers, true or false, or lists of these, has at least two values, and at
least half of its entries are values that several items have. So a genre or a brand is a side field, but a description
is not; ids, titles, text and coordinates never are. An item without a value in a field has the field's value for
"missing", which is learned like any other.

Shapes: N items, E entries of all items and fields, V values of all fields.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data import columns
from llmrec.data.catalog import Catalog

NO_FIELDS = (columns.ITEM_ID, columns.TITLE, columns.TEXT, columns.LAT, columns.LON)


class Fields(NamedTuple):
    """Values of the side fields of every item, one item after another.

    Attributes:
        names: Columns that were read.
        values: (E,) int64 in [0, V); each field has values of its own.
        offsets: (N + 1,) int64; the entries of item i are `values[offsets[i]:offsets[i + 1]]`.
        weights: (E,) float32, 1 / (number of entries of the same item in the same field).
        num_values: V.
    """

    names: list[str]
    values: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    num_values: int


def side_fields(catalog: Catalog) -> Fields:
    """Collect the side fields of a catalogue's items.

    Raises:
        ValueError: If no column is a side field; the message says why for each.
    """
    found, refused = {}, []
    for name in catalog.items.column_names:
        if name in NO_FIELDS:
            continue
        given = entries(catalog.items[name])
        if given is None:
            refused.append(f"'{name}' holds {catalog.items[name].type}")
        elif not is_shared(*given):
            refused.append(f"of '{name}' most values belong to one item, or all items have the same")
        else:
            found[name] = given
    if not found:
        others = "; ".join(refused) or f"it has only {catalog.items.column_names}"
        raise ValueError(
            f"{catalog.source}/items.parquet has no side field ({others}). Add a column of text, integers or lists "
            "whose values several items share, such as a brand or genres, before `llmrec prepare`, or leave "
            "sasrec_fields out of the baselines."
        )
    return _joined(found, catalog.num_items)


def entries(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray] | None:
    """Item row and code of every value in a column; None if the column holds no categories."""
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    cells = column.combine_chunks()
    rows = np.arange(len(cells))
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        rows, cells = pc.list_parent_indices(cells).to_numpy(), cells.flatten()
    kind = cells.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    given = cells.is_valid()
    given = pc.and_(given, pc.not_equal(cells, "").fill_null(False)) if text else given
    codes = cells.filter(given).dictionary_encode().indices.to_numpy().astype(np.int64)
    return rows[given.to_numpy(zero_copy_only=False)].astype(np.int64), codes


def is_shared(rows: np.ndarray, codes: np.ndarray) -> bool:
    """True if there are at least two values, and at least half of the entries are values that several items have."""
    pairs = np.unique(np.stack([rows, codes]), axis=1)  # an item that repeats a value has it once
    items = np.bincount(pairs[1])  # of each value
    return len(items) > 1 and (items[codes] > 1).mean() >= 0.5


def _joined(found: dict[str, tuple[np.ndarray, np.ndarray]], num_items: int) -> Fields:
    """Join the entries of all fields in the order of the items; the last value of each field means "missing"."""
    all_rows, all_values, all_weights, num_values = [], [], [], 0
    for rows, codes in found.values():
        missing = np.setdiff1d(np.arange(num_items), rows)
        missing_code = codes.max() + 1
        rows, codes = np.concatenate([rows, missing]), np.concatenate([codes, np.full(len(missing), missing_code)])
        all_rows.append(rows)
        all_values.append(codes + num_values)
        all_weights.append(1 / np.bincount(rows)[rows])
        num_values += int(missing_code) + 1
    rows = np.concatenate(all_rows)
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_items))])
    weights = np.concatenate(all_weights)[order].astype(np.float32)
    return Fields(list(found), np.concatenate(all_values)[order], offsets, weights, num_values)
