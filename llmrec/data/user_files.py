"""Own CSV or parquet files with named columns, read into a Dataset; every problem of both files is reported at once.

CSV cells are read as text and converted by column, so ids such as '0104257' keep their zeros and no type is guessed
from the first rows. Times are numbers, which stay as they are, or ISO dates (2012-04-03, 2012-04-03 14:04:01); other
orders of dates are ambiguous and refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TEXT, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.public_formats import Dataset, compose_text, read_bytes, untitled_items


@dataclass
class Table:
    """Rows of a file and the problems found in them so far."""

    path: Path
    frame: pl.DataFrame
    has_lines: bool
    problems: list[str]

    def place(self, row: int) -> str:
        """Line of a row in a CSV without line breaks in cells, else the number of the row, from 1."""
        return f"line {row + 2}" if self.has_lines else f"row {row + 1}"

    def report(self, bad: pl.Series, what: str, remedy: str, value: str | None = None) -> None:
        """Add a problem about the rows where `bad` is true: how many, the first one, its value, and the remedy."""
        rows = bad.arg_true()
        if len(rows):
            given = f" ({self.frame[value][rows[0]]!r})" if value else ""
            self.problems.append(
                f"{self.path}: {len(rows)} rows {what}, first at {self.place(rows[0])}{given}; {remedy}"
            )


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
    return Dataset(_with_text(catalogue.frame) if catalogue else untitled_items(frame), frame)


def _with_text(items: pl.DataFrame) -> pl.DataFrame:
    if TEXT not in items.columns:
        return compose_text(items)
    return items.with_columns(pl.col(TEXT).cast(pl.String).fill_null(""))


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
    frame, has_lines = _read(path)
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


def _read(path: Path) -> tuple[pl.DataFrame, bool]:
    suffix = Path(path.stem).suffix if path.suffix == ".xz" else path.suffix
    if suffix not in (".csv", ".parquet"):
        raise ValueError(f"'{path}' is neither .csv nor .parquet (plain or .xz); convert it to one of them.")
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; check the path.")
    content = read_bytes(path)
    try:
        if suffix == ".parquet":
            return pl.read_parquet(io.BytesIO(content)), False
        text = _decode(path, content).rstrip("\r\n")
        frame = pl.read_csv(io.BytesIO(text.encode()), infer_schema=False)
        return frame, text.count("\n") == frame.height
    except pl.exceptions.NoDataError:
        raise ValueError(f"'{path}' is empty; give a file with a header and rows.") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"'{path}' is not a valid {suffix[1:]} file ({reason}); export it again.") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"'{path}' is not UTF-8: line {line}, byte {error.start}. Convert it, "
            f"for example with `iconv -f latin1 -t utf-8 {path.name}`."
        ) from error


def _check_items(items: Table) -> None:
    _to_ids(items, ITEM_ID)
    repeated = ~items.frame[ITEM_ID].is_first_distinct() & items.frame[ITEM_ID].is_not_null()
    items.report(repeated, "repeat an item_id", "keep one row per item.", ITEM_ID)
    items.frame = items.frame.with_columns(pl.col(TITLE).cast(pl.String).str.strip_chars().replace("", None))
    for name in (LAT, LON):
        if name in items.frame.columns:
            _to_number(items, name)


def _check_log(log: Table, items: Table | None) -> None:
    _to_ids(log, USER_ID)
    _to_ids(log, ITEM_ID)
    _to_time(log)
    if WEIGHT in log.frame.columns:
        _to_number(log, WEIGHT)
    else:
        log.frame = log.frame.with_columns(pl.lit(1.0).alias(WEIGHT))
    if items is not None:
        known = items.frame[ITEM_ID].unique().drop_nulls()
        unknown = log.frame[ITEM_ID].is_not_null() & ~log.frame[ITEM_ID].is_in(known.implode())
        log.report(unknown, f"name an item that {items.path} lacks", "add the item or drop the rows.", ITEM_ID)


def _to_ids(table: Table, name: str) -> None:
    dtype = table.frame.schema[name]
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        table.problems.append(f"{table.path}: column {name} holds {dtype}; ids are text or integers, so convert it.")
    table.frame = table.frame.with_columns(pl.col(name).cast(pl.String, strict=False).replace("", None))
    table.report(table.frame[name].is_null(), f"have an empty {name}", "fill in the id or drop the rows.")


def _to_number(table: Table, name: str) -> None:
    number = table.frame[name].cast(pl.Float64, strict=False)
    given = table.frame[name].is_not_null()
    table.report(given & ~number.is_finite().fill_null(False), f"have a {name} that is no number", "correct it.", name)
    table.frame = table.frame.with_columns(number)


def _to_time(table: Table) -> None:
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
