"""Own files, read into a Dataset: `read_tables` is the entry of this package.

Cells of text files are text and are converted by column, so ids such as '0104257' keep their zeros and no type is
guessed from the first rows. Every problem of both files is reported at once, with file, line and remedy; what was
chosen without being asked for is a sentence in `Dataset.notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.intake.cells.fields import Fields
from llmrec.data.intake.choose import OPTIONS, choose, choose_optional, plain, shown
from llmrec.data.intake.files.content import reading
from llmrec.data.intake.files.opened import open_rows
from llmrec.data.intake.files.rows import Rows
from llmrec.data.intake.item_columns import add_item_columns, items_of_log
from llmrec.data.intake.table import Table
from llmrec.data.intake.times import refuse_far_dates, to_time
from llmrec.data.intake.values import to_ids, to_number
from llmrec.data.public_formats import Dataset
from llmrec.data.report.ids import known_look_alike

RATINGS = ("rating", "ratings", "stars", "score", "overall", "playcount", "plays", "count", "quantity")


def read_tables(
    interactions: str | Path,
    items: str | Path | None = None,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    timestamp_column: str | None = None,
    title_column: str | None = None,
    weight_column: str | None = None,
    item_file_column: str | None = None,
    separator: str | None = None,
    order_only: bool = False,
    known_items: pl.Series | None = None,
    allow_unknown: bool = False,
) -> Dataset:
    """Read a log of interactions and its item file, if there is one.

    Args:
        interactions: File or directory of parts: delimited text, JSON lines or parquet; see docs/prepare.md.
        items: The same, of the items. Without it, the items are those of the log, with the columns of the log that have
            one value for each item. Every column is read; see docs/own-data.md.
        user_column: Name of the user column in `interactions`; if None, `user_id` or a common name.
        item_column: Name of the item column, in both files; if None, `item_id` or a common name in each.
        timestamp_column: Name of the time column in `interactions`; if None, `timestamp` or a common name.
        title_column: Name of the title column in `items`, or in `interactions` without `items`; if None, `title` or a
            common name.
        weight_column: Name of a column of numbers in `interactions`; if None, `weight`; without it, weights are 1.
        item_file_column: Name of the item column in `items`, where it is not `item_column`.
        separator: Text between the cells of delimited text; if None, it is found from the first lines.
        order_only: Read no times; the rows of each user are in order, and the position is the timestamp.
        known_items: Ids that the log may name although `items` lacks them, such as those of an earlier catalogue.
        allow_unknown: True if the log may name any item that `items` lacks; what becomes of it is left to the caller.

    Raises:
        ValueError: With every problem of both files: unreadable, no rows, missing columns, empty or repeated ids,
            unreadable times, interactions with unknown items.
    """
    log_rows = open_rows(interactions, separator)
    order_only = order_only or log_rows.order_only
    wanted = {USER_ID: user_column, ITEM_ID: item_column} | ({} if order_only else {TIMESTAMP: timestamp_column})
    chosen = choose(log_rows, wanted) | choose_optional(log_rows, WEIGHT, weight_column)
    log = _read(log_rows, chosen)
    catalogue = None
    if items is not None:
        catalogue = _read_items(items, item_file_column or item_column, title_column, separator)
    check_separator(separator, [log_rows, *([catalogue.rows] if catalogue else [])])
    _check_log(log, None if allow_unknown else catalogue, order_only, known_items)
    unused = [name for name in log_rows.names if name not in chosen.values()]
    if catalogue is None:
        catalogue, unused = _items_of_log(log, unused, title_column, order_only)
    if unused:
        log.note(f"not read: {shown(unused)}.{_weight_remedy(chosen, unused)}")
    problems = [*(catalogue.problems if catalogue.rows is not log_rows else []), *log.problems]
    if problems:
        raise ValueError("\n".join(problems))
    notes = dict.fromkeys([*log_rows.notes, *catalogue.rows.notes])
    return Dataset(
        catalogue.frame, log.frame.select(USER_ID, ITEM_ID, TIMESTAMP, WEIGHT), order_only, notes=tuple(notes)
    )


def read_items(
    items: str | Path, *, item_column: str | None = None, title_column: str | None = None, separator: str | None = None
) -> Dataset:
    """Read an item file without a log; arguments and errors as in `read_tables`."""
    table = _read_items(items, item_column, title_column, separator)
    check_separator(separator, [table.rows])
    if table.problems:
        raise ValueError("\n".join(table.problems))
    none = pl.DataFrame(schema={USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, WEIGHT: pl.Float64})
    return Dataset(table.frame, none, notes=tuple(dict.fromkeys(table.rows.notes)))


def check_separator(separator: str | None, files: Sequence[Rows]) -> None:
    """Refuse a separator that no file has a use for.

    Raises:
        ValueError: If one is given, and every file is of another kind than delimited text.
    """
    if separator is not None and not any(rows.is_delimited for rows in files):
        named = " and ".join(f"'{rows.path}'" for rows in files)
        raise ValueError(
            f"--separator is {separator!r}, the text between the cells of delimited text; {named} "
            f"{'are' if len(files) > 1 else 'is'} of another kind, so leave it out."
        )


def _read_items(items: str | Path, item_column: str | None, title_column: str | None, separator: str | None) -> Table:
    """Read and check an item file; every column is kept."""
    rows = open_rows(items, separator)
    named = choose(rows, {ITEM_ID: item_column, TITLE: title_column}, OPTIONS | {ITEM_ID: "--item-file-column"})
    table = _read(rows, named, every_column=True)
    _check_items(table)
    return table


def _read(rows: Rows, chosen: dict[str, str], every_column: bool = False) -> Table:
    """Read the chosen columns, or every one, under llmrec's names and in the order of the file.

    A column that bears a name of llmrec's but was not chosen for it is left out.
    """
    names = {column: name for name, column in chosen.items()}
    if len(names) < len(chosen):
        raise ValueError(f"{rows.path}: {chosen} name one column twice; give each its own.")
    columns = [name for name in rows.names if name in names or (every_column and name not in chosen)]
    columns += [name for name in rows.others if name in names]
    frame = rows.read(columns).rename(names)
    if frame.is_empty():
        raise ValueError(f"{rows.path} has no rows; give a file with at least one.")
    for name, column in chosen.items():
        if name != TITLE and column in rows.nested:
            raise ValueError(
                f"{rows.path}: column {column!r} holds a list or an object, first at {rows.nested[column]}; "
                f"{name} needs text or a number."
            )
    return Table(rows, frame)


def _check_items(items: Table) -> None:
    same = pl.repeat(False, items.frame.height, eager=True)
    if to_ids(items, ITEM_ID):
        repeated = ~items.frame[ITEM_ID].is_first_distinct() & items.frame[ITEM_ID].is_not_null()
        same = repeated & _repeats_a_row(items.frame) if repeated.any() else repeated
        items.report(repeated & ~same, "repeat an item_id", "keep one row per item.", ITEM_ID)
    if refuse_far_dates(items):
        return
    _read_fields(items)
    for name in (LAT, LON):
        if name in items.frame.columns:
            to_number(items, name)
    if same.any():  # after all reports, which count the rows of the file
        items.frame = items.frame.filter(~same)
        items.note(f"exact repeats of another row: {same.sum():,}; each item is read once.")


def _repeats_a_row(frame: pl.DataFrame) -> pl.Series:
    """(N,) bool: rows whose cells are all those of an earlier row; False if polars cannot compare the types."""
    try:
        return ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    except pl.exceptions.PolarsError:
        return pl.repeat(False, frame.height, eager=True)


def _read_fields(items: Table) -> None:
    with reading(items.path):
        fields = Fields(items.frame, items.rows.decimal_comma)
    items.frame = fields.items
    items.problems += [f"{items.path}: {problem}" for problem in fields.problems]
    items.rows.notes += [f"{items.path}: {note}" for note in fields.notes]


def _check_log(log: Table, items: Table | None, order_only: bool, known_items: pl.Series | None) -> None:
    to_ids(log, USER_ID)
    has_ids = to_ids(log, ITEM_ID)
    if order_only:
        log.frame = log.frame.with_columns(pl.int_range(pl.len()).over(USER_ID).alias(TIMESTAMP))
    else:
        to_time(log)
    if WEIGHT in log.frame.columns:
        to_number(log, WEIGHT)
    else:
        log.frame = log.frame.with_columns(pl.lit(1.0).alias(WEIGHT))
    if items is not None and has_ids and items.frame.schema[ITEM_ID] == pl.String:
        known = items.frame[ITEM_ID].unique().drop_nulls()
        if known_items is not None:
            known = pl.concat([known, known_items]).unique()
        unknown = log.frame[ITEM_ID].is_not_null() & ~log.frame[ITEM_ID].is_in(known.implode())
        alike = known_look_alike(log.frame[ITEM_ID].filter(unknown), known)
        remedy = f"{alike}. Write ids in one form in both files" if alike else "add the items"
        remedy += ", or give --unknown-items keep or drop."
        log.report(unknown, f"name an item that {items.path} lacks", remedy, ITEM_ID)


def _items_of_log(
    log: Table, columns: list[str], title_column: str | None, order_only: bool
) -> tuple[Table, list[str]]:
    """Items of a log without an item file, and the columns that have no use."""
    title = choose_optional(log.rows, TITLE, title_column, columns).get(TITLE)
    if log.problems:  # ids or times are bad, so nothing can be said about items
        return Table(log.rows, log.frame), columns
    added = add_item_columns(log, columns, title, is_sure=title_column is not None)
    names = list(added.values())
    refuse_far_dates(log)
    for name in (LAT, LON):
        if name in names:
            to_number(log, name)
    if log.problems:
        return Table(log.rows, log.frame), columns
    items = Table(log.rows, items_of_log(log, names, order_only))
    _read_fields(items)
    log.problems += items.problems
    if names:
        log.note(f"columns of the items: {', '.join(names)}.")
    return items, [name for name in columns if name not in added]


def _weight_remedy(chosen: dict[str, str], unused: list[str]) -> str:
    rating = next((name for name in unused if plain(name) in RATINGS), None)
    return f" --weight-column {rating} keeps it as the weight." if rating and WEIGHT not in chosen else ""
