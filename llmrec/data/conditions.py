"""Conditions on the columns of a table: SQL expressions such as "price <= 20", which polars evaluates.

polars would also run a sub-query, and in it `read_csv` on any file. A condition is therefore split into tokens and put
together again from literals, quoted columns of the table, and the operators, words and functions below.

A missing value (null, NaN) meets no condition, except IS NULL.

Shapes: N rows of the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from polars import selectors
from polars.exceptions import PolarsError

from llmrec.configs.options import suggestion

WORDS = ("AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "ILIKE", "BETWEEN", "TRUE", "FALSE", "AS", "DOUBLE", "VARCHAR")
FUNCTIONS = ("array_contains", "array_length", "cast", "lower", "replace", "try_cast")
TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')
    | "(?P<quoted>(?:[^"]|"")+)"
    | (?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?(?!\w))
    | (?P<word>[^\W\d]\w*(?!['"]))  # E'…' is another kind of text, with escapes
    | (?P<symbol><=|>=|<>|!=|==?|[-+*/%<>(),])""",
    re.VERBOSE,
)
EXAMPLE = "write one SQL expression, such as \"price <= 20 AND array_contains(genres, 'Drama')\""


def matches(table: pa.Table, conditions: Sequence[str]) -> np.ndarray:
    """Find the rows of a table that meet all conditions.

    Args:
        table: Table whose columns the conditions name.
        conditions: SQL expressions that are true or false. Text stands in single quotes; a column whose name is more
            than a word stands in double quotes.

    Returns:
        (N,) bool.

    Raises:
        ValueError: With every condition that cannot be read, or does not fit its columns.

    >>> table = pa.table({"title": ["Saw", "Jaws", None], "price": [5.0, None, 9.0], "genres": [["Horror"], [], []]})
    >>> matches(table, ["price < 9", "array_contains(genres, 'Horror')"]).tolist()
    [True, False, False]
    >>> matches(table, ["title ILIKE '%aw%' OR price = 9"]).tolist()
    [True, True, True]
    """
    met, problems = np.ones(table.num_rows, dtype=bool), []
    for condition in conditions:
        try:
            met &= _meets(table, condition)
        except ValueError as error:
            problems.append(f"condition '{condition}': {error}")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    return met


def _meets(table: pa.Table, condition: str) -> np.ndarray:
    """(N,) bool: rows that meet one condition."""
    tokens, columns = list(_tokens(condition)), []
    for position, (kind, text) in enumerate(tokens):
        calls = tokens[position + 1 : position + 2] == [("symbol", "(")]
        if kind == "word" and text.upper() in WORDS:
            continue
        if kind in ("word", "quoted") and calls:
            if kind == "quoted" or text.lower() not in FUNCTIONS:
                raise ValueError(f"'{text}' is not a function that may stand here; there are {', '.join(FUNCTIONS)}")
        elif kind in ("word", "quoted"):
            columns.append(_known(text, table.column_names))
            tokens[position] = ("column", '"' + text.replace('"', '""') + '"')
    if not columns:
        raise ValueError(f"it names no column; {EXAMPLE}")
    cells = pl.DataFrame(table.select(dict.fromkeys(columns)))
    cells = cells.with_columns(selectors.float().fill_nan(None), selectors.categorical().cast(pl.String))
    try:
        met = cells.select(pl.sql_expr(" ".join(text for _, text in tokens)).alias("met"))["met"]
    except PolarsError as error:
        raise ValueError(f"{str(error).splitlines()[0]}; {_remedy(cells)}") from None
    if met.dtype != pl.Boolean:
        raise ValueError(f"its value is {met.dtype}, not true or false; {EXAMPLE}")
    return met.fill_null(False).to_numpy()


def _tokens(condition: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and text of every token; the text of a quoted column is its name."""
    position = 0
    while rest := condition[position:].strip():
        position = len(condition) - len(condition[position:].lstrip())
        token = TOKEN.match(condition, position)
        if token is None or token.lastgroup is None:
            raise ValueError(f"'{rest.split()[0]}' cannot stand here; {EXAMPLE}")
        kind, text = token.lastgroup, token[token.lastgroup]
        yield kind, text.replace('""', '"') if kind == "quoted" else text
        position = token.end()


def _known(name: str, columns: Sequence[str]) -> str:
    """Return the name of a column; refuse a name that the table does not have."""
    if name in columns:
        return name
    if name.lower() == "contains":
        raise ValueError("'contains' is no SQL; use array_contains(column, 'value') or column ILIKE '%value%'")
    quoted = next((column for column in columns if not column.isidentifier() and column.startswith(name)), None)
    remedy = f'write "{quoted}"' if quoted else suggestion(name, columns, otherwise="the columns are")
    raise ValueError(f"unknown column '{name}'; {remedy}; text stands in single quotes")


def _remedy(cells: pl.DataFrame) -> str:
    """Sentence that names the columns in question with their types, and what fits them."""
    types = ", ".join(f"{name} is {dtype}" for name, dtype in cells.schema.items())
    text = next((name for name, dtype in cells.schema.items() if dtype == pl.String), None)
    return types + (f'; text can be read as a number: try_cast("{text}" AS DOUBLE)' if text else f"; {EXAMPLE}")
