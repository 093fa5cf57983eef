"""Lists that a file holds as text: printed by Python, NumPy or Java, or written as JSON.

`['Beauty', 'Hair']`, `["Beauty", "Hair"]`, `['Beauty' 'Hair']`, `('Beauty',)`, `{'Beauty'}`, `array(['Beauty'],
dtype=object)`, `[Beauty, Hair]`, and lists of lists such as `[['a', 'b'], ['a', 'c']]` (Amazon 2014). They are read by
a grammar of their own and never evaluated: Python would join the words of NumPy's form, which has no commas, into one.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re

import polars as pl

from llmrec.data.intake.cells import text

TOKEN = re.compile(
    r"""\s*(?:(?P<open>(?:array\s*\(\s*)?\[|[({]) | (?P<close>\](?:\s*,\s*dtype=[^()\[\]]*)?\s*\)?|[)}]) | (?P<comma>,)
    | (?P<string>[uUbB]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
    | (?P<word>[^\s\[\](){},'"][^\s\[\](){},'"]*))\s*""",
    re.VERBOSE | re.DOTALL,
)
JAVA = re.compile(r"\[([^\[\](){}'\"]*)\]")  # [Beauty, Hair & Nails]: values between commas, without quotes
LETTER = re.compile(r"[^\s\d.,+-]")
LIST_LIKE = r"(?s)^\s*(?:array\s*\(\s*\[.*\)|\[.*\]|\(.*\)|\{.*\})\s*$"
DECIMALS = re.compile(r"[\s\[\](),\deE+-]*\d\.\d*[\s\[\](),\deE+.-]*")  # a vector, not a list of values
NOTHING = ("None", "nan", "null")


def parse(cell: str, words: bool = True) -> list[str] | None:
    """Read a list that was written as text.

    Args:
        cell: Text of a cell.
        words: Whether values may stand without quotes.

    Returns:
        Values as text; those of inner lists one after another, each once. None if the text is no list, a list of
        records or a vector of decimals.

    >>> parse("['Beauty' \\"Women's\\", nan]"), parse('[["a", "b"], ["a"]]'), parse("[]"), parse("Beauty")
    (['Beauty', "Women's"], ['a', 'b'], [], None)
    """
    if DECIMALS.fullmatch(cell):
        return None
    plain = JAVA.fullmatch(cell.strip())
    if plain and LETTER.search(plain[1]):
        return [value.strip() for value in plain[1].split(",")] if words else None
    values, depth, deepest, position = [], 0, 0, 0
    while position < len(cell):
        token = TOKEN.match(cell, position)
        if token is None or (depth == 0 and (token.lastgroup != "open" or position)):
            return None
        position, kind, value = token.end(), token.lastgroup, token[0].strip()
        if kind == "open":
            depth += 1
            deepest = max(depth, deepest)
        elif kind == "close":
            depth -= 1
        elif kind == "string":
            values.append(_unquote(value))
        elif kind == "word" and value not in NOTHING:
            if not words or value == "..." or ":" in (value[0], value[-1]):  # a record, or a list cut in printing
                return None
            values.append(value)
    if depth:
        return None
    return list(dict.fromkeys(values)) if deepest > 1 else values


def _unquote(token: str) -> str:
    """Text of a string of Python or JSON; halves of a UTF-16 pair, which JSON writes, become one character."""
    token = token.lstrip("uUbB")
    if "\\" not in token:
        return token[1:-1]
    for read in (json.loads, ast.literal_eval) if token[0] == '"' else (ast.literal_eval,):
        with contextlib.suppress(ValueError, SyntaxError):
            return str(read(token)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return token[1:-1]


def read_lists(cells: pl.Series, words: bool = True) -> pl.Series:
    """Read the cells of a text column that are lists.

    Args:
        cells: (N,) strings.
        words: Whether values may stand without quotes.

    Returns:
        (N,) lists of strings; null where a cell is no list.
    """
    distinct = cells.filter(cells.str.contains(LIST_LIKE).fill_null(False)).unique()
    values = pl.Series([parse(cell, words) for cell in distinct], dtype=pl.List(pl.String))
    table = pl.DataFrame({"cell": distinct, "values": values})
    return pl.DataFrame({"cell": cells}).join(table, on="cell", how="left", maintain_order="left")["values"]


def are_records(cells: pl.Series) -> pl.Series:
    """(N,) bool: cells that hold a record or a list of records as text, such as `{'id': 1}` or `[{"id": 1}]`."""
    return cells.str.contains(r"(?s)^\s*\[?\s*\{[^{}]*[:=].*\}\s*\]?\s*$").fill_null(False)


def clean_values(lists: pl.Series) -> pl.Series:
    """Clean every value as text; missing values are dropped, and an empty list is null.

    Args:
        lists: (N,) lists of strings.
    """
    rows = pl.DataFrame({"values": lists}).with_row_index("row")
    values = rows.drop_nulls().explode("values")
    values = values.with_columns(text.clean(values["values"]))
    values = values.filter(pl.col("values").is_not_null(), ~text.is_missing(values["values"]))
    grouped = values.group_by("row", maintain_order=True).agg("values")
    return rows.select("row").join(grouped, on="row", how="left", maintain_order="left")["values"]
