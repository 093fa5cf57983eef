"""Conditions on the columns of a table, such as 'price <= 20'. They are read by a small parser and never evaluated.

A condition is COLUMN OPERATOR VALUE. The type of the column says which operators it takes and what a value is:

| column | operators | a row meets it where |
|---|---|---|
| numbers | == != < <= > >= in | its number compares so |
| text | == != in contains | its text is equal, case and all; `contains` finds a part of it and ignores case |
| text | < <= > >= | every text is a number (a CSV file has no other), and it compares so; an empty one is missing |
| true or false | == != | it is so |
| lists | contains in | the value (`in`: one of the values) is an element, as numbers or text are equal above |

`in` takes several values with commas between them; double quotes around one keep its own. A missing value (null, NaN)
meets no condition, `!=` included.

Shapes: N rows of the table.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.configs.options import suggestion

ORDER = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
COMPARISONS = {"==": pc.equal, "!=": pc.not_equal, **ORDER}
OPERATORS = (*COMPARISONS, "in", "contains")
OPERATORS_OF = {  # what a column holds -> what it takes
    "text": OPERATORS,
    "numbers": (*COMPARISONS, "in"),
    "true or false": ("==", "!="),
    "lists": ("in", "contains"),
}


def matches(table: pa.Table, conditions: Sequence[str]) -> np.ndarray:
    """Rows of a table that meet all conditions.

    Returns:
        (N,) bool.

    Raises:
        ValueError: With every condition that cannot be read, or does not fit its column.
    """
    met, problems = np.ones(table.num_rows, dtype=bool), []
    for condition in conditions:
        try:
            column, operator, value = _parse(condition.strip(), table.column_names)
            met &= _meets(table[column], column, operator, value)
        except ValueError as error:
            problems.append(f"condition '{condition}': {error}")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    return met


def _parse(condition: str, names: Sequence[str]) -> tuple[str, str, str]:
    """Column, operator and value of a condition; a column's name may hold spaces."""
    begins = [name for name in names if re.match(re.escape(name) + r"(?!\w)", condition)]
    if not begins:
        column = re.match(r"[^\s<>=!]*", condition)[0]
        raise ValueError(f"unknown column '{column}'; {suggestion(column, names, otherwise='the columns are')}")
    column = max(begins, key=len)
    operator, value = re.fullmatch(r"\s*([<>=!]+|[^\s<>=!]*)\s*(.*)", condition[len(column) :], re.DOTALL).groups()
    if operator not in OPERATORS:
        problem = f"unknown operator '{operator}'" if operator else f"no operator after '{column}'"
        raise ValueError(f"{problem}; choose from {' '.join(OPERATORS)}, and give the condition as one text")
    if not value:
        raise ValueError(f"no value after '{operator}'")
    return column, operator, value


def _meets(column: pa.ChunkedArray, name: str, operator: str, value: str) -> np.ndarray:
    """(N,) bool: whether each cell of a column meets `operator value`."""
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    cells, kind = column.combine_chunks(), _kind(column.type)
    if operator not in OPERATORS_OF.get(kind, ()):
        takes = " ".join(OPERATORS_OF[kind]) if kind in OPERATORS_OF else "no condition"
        raise ValueError(f"'{name}' holds {kind}, which takes {takes}")
    values = next(csv.reader([value], skipinitialspace=True)) if operator == "in" else [_unquoted(value)]
    if kind != "lists":
        return _compare(cells, name, operator, values)
    met = np.zeros(len(cells), dtype=bool)
    met[pc.list_parent_indices(cells).to_numpy()[_compare(cells.flatten(), name, "in", values)]] = True
    return met


def _kind(dtype: pa.DataType) -> str:
    """What cells of a type are called: a key of OPERATORS_OF, or the Arrow type where it is none of them."""
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return "lists" if _kind(dtype.value_type) in ("text", "numbers") else str(dtype)
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return "numbers"
    return "true or false" if pa.types.is_boolean(dtype) else str(dtype)


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _compare(cells: pa.Array, name: str, operator: str, values: list[str]) -> np.ndarray:
    """(N,) bool: whether each cell meets the operator with one of the values."""
    if operator in ORDER and _kind(cells.type) == "text":
        cells = _numbers(cells, name)
    if operator == "contains":
        met = pc.match_substring(cells, values[0], ignore_case=True)
    else:
        compare = COMPARISONS.get(operator, pc.equal)  # `in`: equal to one of the values
        met = functools.reduce(pc.or_, (compare(*_alike(cells, value.strip(), name)) for value in values))
    met = pc.and_(met, pc.invert(pc.is_null(cells, nan_is_null=True)))
    return met.fill_null(False).to_numpy(zero_copy_only=False)


def _alike(cells: pa.Array, value: str, name: str) -> tuple[pa.Array, pa.Scalar]:
    """Cells and a value as they can be compared: as integers where both are, without loss; else as `cells` or float64.

    Raises:
        ValueError: If the value is none of the kind that the column holds.
    """
    kind = _kind(cells.type)
    if kind == "text":
        return cells, pa.scalar(value, cells.type)
    if kind == "true or false":
        if value.lower() not in ("true", "false"):
            raise ValueError(f"'{name}' holds true or false, not '{value}'")
        return cells, pa.scalar(value.lower() == "true")
    if not _is_number(value):
        raise ValueError(f"'{name}' holds numbers, and '{value}' is none")
    if pa.types.is_floating(cells.type):
        return cells, pa.scalar(float(value), cells.type)  # a float32 of 0.1 equals 0.1
    try:
        return cells.cast(pa.int64()), pa.scalar(int(value), pa.int64())
    except (ValueError, OverflowError):  # a fraction, or beyond int64
        return cells.cast(pa.float64(), safe=False), pa.scalar(float(value))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(pa.scalar(text).cast(pa.float64()).as_py())
    except pa.ArrowInvalid:
        return False


def _numbers(cells: pa.Array, name: str) -> pa.Array:
    """Numbers that are stored as text; a CSV file has no others."""
    text = pc.utf8_trim_whitespace(cells)
    text = pc.if_else(pc.equal(text, ""), None, text)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        odd = next(cell for cell in text.drop_null().unique().to_pylist() if not _is_number(cell))
        raise ValueError(
            f"'{name}' holds text, which is compared by size only where all of it is numbers; '{odd}' is none. Use == "
            "!= in contains, or make the column numbers before `llmrec prepare`"
        ) from None
