"""Own CSV or parquet files with named columns, read into a Dataset; every problem of both files is reported at once.

CSV cells are read as text and converted by column, so ids such as '0104257' keep their zeros and no type is guessed
from the first rows. Times are numbers, which stay as they are, or ISO dates (2012-04-03, 2012-04-03 14:04:01); other
orders of dates are ambiguous and refused.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.intake.cells.fields import Fields
from llmrec.data.intake.files import open_file
from llmrec.data.intake.table import Table
from llmrec.data.intake.times import to_time
from llmrec.data.intake.values import to_ids, to_number
from llmrec.data.public_formats import Dataset, untitled_items


def read_tables(
    interactions: str | Path,
    items: str | Path | None = None,
    *,
    user_column: str = USER_ID,
    item_column: str = ITEM_ID,
    timestamp_column: str = TIMESTAMP,
    title_column: str = TITLE,
) -> Dataset:
    """Read a log of interactions and its item file, if there is one.

    Args:
        interactions: .csv or .parquet file (or .xz of it); a numeric column `weight` is kept, else weights are 1.
        items: .csv or .parquet file of the items. Without it, the items are those of the log and have no titles. The
            column `text` is embedded later; without it, it is composed of the title and descriptive fields.
        user_column: Name of the user column in `interactions`.
        item_column: Name of the item column in both files.
        timestamp_column: Name of the time column in `interactions`.
        title_column: Name of the title column in `items`.

    Raises:
        ValueError: With every problem of both files: unreadable, no rows, missing columns, empty or repeated ids,
            unreadable times, interactions with unknown items.
    """
    log_columns = {"user_column": user_column, "item_column": item_column, "timestamp_column": timestamp_column}
    item_columns = {"item_column": item_column, "title_column": title_column}
    log = open_table(interactions, log_columns, (USER_ID, ITEM_ID, TIMESTAMP))
    catalogue = None if items is None else open_table(items, item_columns, (ITEM_ID, TITLE))
    if catalogue:
        _check_items(catalogue)
    _check_log(log, catalogue)
    problems = [*(catalogue.problems if catalogue else []), *log.problems]
    if problems:
        raise ValueError("\n".join(problems))
    frame = log.frame.select(USER_ID, ITEM_ID, TIMESTAMP, WEIGHT)
    return Dataset(catalogue.frame if catalogue else untitled_items(frame), frame)


def open_table(path: str | Path, options: dict[str, str], names: tuple[str, ...]) -> Table:
    """Read a file and give its columns llmrec's names.

    Args:
        path: The file.
        options: Option -> name of the column in the file.
        names: Name of llmrec for each of these columns.

    Raises:
        ValueError: If the file is absent, unreadable, empty, or lacks one of the columns.
    """
    path = Path(path)
    frame, has_lines = open_file(path)
    missing = [f"'{column}' (--{key.replace('_', '-')})" for key, column in options.items() if column not in frame]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}; it has {frame.columns}. Name yours with these options."
        )
    if len(set(options.values())) < len(options):
        raise ValueError(f"{path}: {options} name one column twice; give each its own.")
    if frame.is_empty():
        raise ValueError(f"{path} has no rows; give a file with at least one.")
    # A column that already bears a name of ours but was not chosen would clash with the renamed one.
    clash = [name for column, name in zip(options.values(), names, strict=True) if name != column and name in frame]
    frame = frame.drop(clash).rename(dict(zip(options.values(), names, strict=True)))
    return Table(path, frame, has_lines, [])


def _check_items(items: Table) -> None:
    if to_ids(items, ITEM_ID):
        repeated = ~items.frame[ITEM_ID].is_first_distinct() & items.frame[ITEM_ID].is_not_null()
        items.report(repeated, "repeat an item_id", "keep one row per item.", ITEM_ID)
    fields = Fields(items.frame)
    items.frame = fields.items
    items.problems += [f"{items.path}: {problem}" for problem in fields.problems]
    for name in (LAT, LON):
        if name in items.frame.columns:
            to_number(items, name)


def _check_log(log: Table, items: Table | None) -> None:
    to_ids(log, USER_ID)
    has_ids = to_ids(log, ITEM_ID)
    to_time(log)
    if WEIGHT in log.frame.columns:
        to_number(log, WEIGHT)
    else:
        log.frame = log.frame.with_columns(pl.lit(1.0).alias(WEIGHT))
    if items is not None and has_ids and items.frame.schema[ITEM_ID] == pl.String:
        known = items.frame[ITEM_ID].unique().drop_nulls()
        unknown = log.frame[ITEM_ID].is_not_null() & ~log.frame[ITEM_ID].is_in(known.implode())
        log.report(unknown, f"name an item that {items.path} lacks", "add the item or drop the rows.", ITEM_ID)
