"""Rows of public files that are no plain table: histories per line or per key, pairs of a history and its next item.

Histories without times have their order alone; the rows of a user are in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from llmrec.data.columns import ITEM_ID, TIMESTAMP, TITLE, USER_ID
from llmrec.data.intake.cells.lists import read_lists
from llmrec.data.intake.files.json_lines import cell

# Columns that may stand beside the items of a pair: llmrec's name, that of the histories, that of the next items.
BESIDE = [(TIMESTAMP, "history_timestamp", TIMESTAMP), (TITLE, "history_item_title", "item_title")]


def renamed(table: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Rename columns, old name -> new name; a column that is absent, or whose new name is taken, stays."""
    return table.rename({old: new for old, new in names.items() if old in table.columns and new not in table.columns})


def histories(text: str) -> pl.DataFrame:
    """Rows of `user item item …`, oldest item first.

    >>> histories("7 2 1\\n9 1").rows()
    [('7', '2'), ('7', '1'), ('9', '1')]
    """
    lines = pl.Series(text.splitlines(), dtype=pl.String).str.extract_all(r"\S+")
    table = pl.DataFrame({"line": lines}).filter(pl.col("line").list.len() > 1)
    table = table.select(pl.col("line").list.first().alias(USER_ID), pl.col("line").list.slice(1).alias(ITEM_ID))
    return table.explode(ITEM_ID)


def keyed_histories(text: str) -> pl.DataFrame:
    """Rows of a JSON object `{user: [item, …]}`, oldest item first."""
    users = _object(text)
    bad = next((user for user, items in users.items() if not _is_list_of_ids(items)), None)
    if bad is not None:
        raise ValueError(f"the value of {bad!r} is no list of items; give user -> items, oldest first")
    table = pl.DataFrame(
        {USER_ID: list(users), ITEM_ID: [[cell(item) for item in items] for items in users.values()]},
        {USER_ID: pl.String, ITEM_ID: pl.List(pl.String)},
    )
    return table.filter(pl.col(ITEM_ID).list.len() > 0).explode(ITEM_ID)


def _is_list_of_ids(value: object) -> bool:
    return isinstance(value, list) and not any(isinstance(each, list | dict) for each in value)


def columns(text: str) -> pl.DataFrame:
    """Rows of a JSON object `{column: [cell, …]}` or `{column: {row: cell}}`, as pandas writes it."""
    table = _object(text)
    cells = {name: list(column.values()) if isinstance(column, dict) else column for name, column in table.items()}
    if not all(isinstance(column, list) for column in cells.values()) or len(set(map(len, cells.values()))) > 1:
        raise ValueError("its columns have different numbers of cells; give one object per row")
    return pl.DataFrame(
        {name: [cell(each) for each in column] for name, column in cells.items()}, dict.fromkeys(cells, pl.String)
    )


def keyed_items(text: str) -> pl.DataFrame:
    """Rows of a JSON object `{item: {field: value}}`; values are the text of JSON."""
    items = _object(text)
    bad = next((item for item, fields in items.items() if not isinstance(fields, dict)), None)
    if bad is not None:
        raise ValueError(f"the value of {bad!r} is no object; give item -> fields")
    names = list(dict.fromkeys(name for fields in items.values() for name in fields if name != ITEM_ID))
    columns = {name: [cell(fields.get(name)) for fields in items.values()] for name in names}
    return pl.DataFrame({ITEM_ID: list(items), **columns}, dict.fromkeys([ITEM_ID, *names], pl.String))


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}); get it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__}, not one object")
    return found


def first_entry(lines: Sequence[str]) -> tuple[str, object]:
    """First key and value of one JSON object that holds a whole file; ("", None) if the lines begin no such file.

    JSON lines also begin with `{`; they are told apart by a second line that does, or a second value of another kind.
    """
    head = "\n".join(lines).lstrip()
    if not head.startswith("{") or sum(line.startswith("{") for line in lines) > 1:
        return "", None
    decoder, position = json.JSONDecoder(), 1
    entries: list[tuple[str, object]] = []
    while key := re.compile(r'\s*"((?:[^"\\]|\\.)*)"\s*:\s*').match(head, position):
        try:
            value, position = decoder.raw_decode(head, key.end())
        except (ValueError, RecursionError):  # the first lines end here
            entries.append((key[1], {"[": [], "{": {}}.get(head[key.end() : key.end() + 1])))
            break
        entries.append((key[1], value))
        comma = re.compile(r"\s*,").match(head, position)
        position = comma.end() if comma else len(head)
    are_alike = len({type(value) for _, value in entries}) == 1
    return entries[0] if are_alike else ("", None)


def pairs(table: pl.DataFrame, history: str, target: str) -> pl.DataFrame:
    """Rows of pairs of a history and its next item: each user's first history, then the next item of all pairs.

    Args:
        table: `user_id`, the columns `history` (a list as text, or items with blanks between them) and `target`, and if
            there are any, `history_timestamp` and `timestamp`, `history_item_title` and `item_title`.
        history: Name of the column of histories.
        target: Name of the column of next items.

    Returns:
        `user_id`, `item_id`, and `timestamp` and `title` if they are given; the rows of a user follow each other.
    """
    table = table.with_columns(pl.col(USER_ID, target).cast(pl.String))
    parts = [(ITEM_ID, history, target), *(part for part in BESIDE if set(part[1:]) <= set(table.columns))]
    listed = {name: _listed(table[before]) for name, before, _ in parts}
    _check_order(table[USER_ID], listed[ITEM_ID], table[target])
    befores = [pl.Series(f"{name} before", cells) for name, cells in listed.items()]
    afters = [table[after].cast(pl.String).alias(name) for name, _, after in parts]
    by_user = pl.DataFrame([table[USER_ID], *befores, *afters]).group_by(USER_ID, maintain_order=True)
    whole = {
        name: pl.concat_list(pl.col(f"{name} before").first(), pl.col(name).implode()).first() for name, *_ in parts
    }
    return by_user.agg(**whole).explode(list(whole))


def _check_order(users: pl.Series, listed: pl.Series, targets: pl.Series) -> None:
    """Refuse pairs of a user that do not continue each other: their joined history would be made up.

    Raises:
        ValueError: If a history does not end with the item of the pair before it.
    """
    table = pl.DataFrame({"user": users, "last": listed.list.last(), "target": targets})
    broken = table.filter(pl.col("last") != pl.col("target").shift().over("user"))
    if broken.height:
        raise ValueError(
            f"the history of a pair of user {broken['user'][0]!r} does not end with the item of the pair before it, so "
            "the pairs are not in order; give one row per interaction"
        )


def _listed(cells: pl.Series) -> pl.Series:
    """Lists of a column: printed lists, or values with blanks between them."""
    if isinstance(cells.dtype, pl.List):
        return cells.cast(pl.List(pl.String))
    printed = read_lists(cells)
    return printed if printed.count() else cells.str.split(" ")
