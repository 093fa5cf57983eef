"""The time column: numbers stay as they are, dates become unix seconds, and no two times lose their order.

Dates are ISO 8601 (`2012-04-03`, `2012-04-03 14:04:01.25`, `…Z`, `… UTC`, `…+02:00`) or name the month (`Tue Apr 03
18:00:09 +0000 2012`, `3 April 2012`). Dates that begin with the day or the month (`26.11.2023 14:04`) are read if some
row of the column shows which of both it is, and refused otherwise. A time without a zone is UTC, so zones of UTC may
stand in some rows only; another zone must stand in all.

Whole numbers and whole seconds are int64. Fractions are float64, unless two different times would become one float64:
then they are int64 of a smaller unit, in which they are whole.
"""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import TIMESTAMP
from llmrec.data.intake.table import Table

REMEDY = "use a number or an ISO date (2012-04-03 14:04:01)."
ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2}|\d{4}/\d{2}/\d{2})"
    r"(?:[Tt ]\s*(?<time>\d{2}:\d{2}(?::\d{2})?)(?:[.,](?<fraction>\d{1,9}))?)?"
    r"\s*(?<zone>[Zz]|UTC|GMT|(?<sign>[+-])(?<hours>[01]\d):?(?<minutes>[0-5]\d)?)?(?:\s+UTC)?$"
)
NAMED_MONTH = (
    "%a %b %d %H:%M:%S %z %Y",  # Twitter, Foursquare
    "%a, %d %b %Y %H:%M:%S %z",  # RFC 5322
    "%d %B %Y",
    "%B %d, %Y",
    "%d-%b-%Y",
)
YEAR_LAST = r"^(?<first>\d{1,2})[/.-](?<second>\d{1,2})[/.-](?<year>\d{4})(?:,?(?<rest>[Tt ].*))?$"
MONTHS = 12
AMBIGUOUS = r"^\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b"
NANOS = 10**9
PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": NANOS}
DAYS = (-719_162, 2_932_896)  # since 1970, of 0001-01-01 and 9999-12-31
FLOAT_DIGITS = 15  # decimal digits that a float64 always keeps


def refuse_far_dates(table: Table) -> bool:
    """Report dates that no calendar prints; True if there are any. Polars panics on them, but other writers do not."""
    num_problems = len(table.problems)
    for name in table.frame.select(pl.col(pl.Date, pl.Datetime)).columns:
        dates = table.frame[name]
        a_day = 1 if dates.dtype == pl.Date else 86_400 * PER_SECOND[dates.dtype.time_unit]  # type: ignore[attr-defined]
        days = dates.to_physical().cast(pl.Int64) // a_day
        is_far = ~days.is_between(*DAYS).fill_null(True)
        table.report(is_far, f"have a {name} outside the years 1 to 9999", "correct it.")
    return len(table.problems) > num_problems


def to_time(table: Table) -> None:
    """Turn the time column into numbers and report the rows that have none."""
    given = table.frame[TIMESTAMP]
    if isinstance(given.dtype, pl.Categorical | pl.Enum | pl.Null):
        given = given.cast(pl.String)
    dtype = given.dtype
    if dtype == pl.String:
        time = _of_text(table, given.str.strip_chars())
    elif isinstance(dtype, pl.Decimal):
        time = _of_decimals(table, given.cast(pl.String))
    elif dtype.is_integer():
        time = given.cast(pl.Int64, strict=False)
    elif dtype.is_float():
        time = given.cast(pl.Float64)
    elif dtype == pl.Date:  # as numbers: polars panics on dates that a Datetime cannot hold
        time = given.to_physical().cast(pl.Int64) * 86_400
    elif isinstance(dtype, pl.Datetime):
        units, per_second = given.to_physical(), PER_SECOND[dtype.time_unit]
        time = _joined(table, units // per_second, units % per_second * (NANOS // per_second))
    else:
        table.problems.append(f"{table.path}: column {TIMESTAMP} holds {dtype}; use numbers or dates.")
        return
    bad = ~time.is_finite().fill_null(False)
    first = given.filter(bad).head(1).cast(pl.String, strict=False) if dtype == pl.String else pl.Series([""])
    either = f"in these dates, the day or the month may come first, and no row shows which; {REMEDY}"
    remedy = either if first.str.contains(AMBIGUOUS).any() else REMEDY
    table.report(bad, "have no readable timestamp", remedy, TIMESTAMP if dtype == pl.String else None)
    table.frame = table.frame.with_columns(time.alias(TIMESTAMP))


def _of_text(table: Table, text: pl.Series) -> pl.Series:
    """Read text as integers if all rows are, else as decimals or dates, whichever reads more rows."""
    integers = text.cast(pl.Int64, strict=False)
    if not integers.has_nulls():
        return integers
    numbers = text.cast(pl.Float64, strict=False)
    text = _year_first(table, text)
    dates = text.str.contains(ISO)
    if dates.sum() > len(text) - numbers.null_count():
        return _of_iso(table, text)
    if numbers.null_count() < len(text):
        return _of_decimals(table, text)
    return min((_of_named_month(text, form) for form in NAMED_MONTH), key=pl.Series.null_count)


def _year_first(table: Table, text: pl.Series) -> pl.Series:
    """Rewrite dates that end with the year as ISO dates, if a number above 12 in the column tells day from month."""
    found = text.str.extract_groups(YEAR_LAST).struct.unnest()
    first, second = (found[name].cast(pl.Int64) for name in ("first", "second"))
    first_is_day, second_is_day = (first > MONTHS).any(), (second > MONTHS).any()
    if first_is_day == second_is_day:  # no row tells, or they contradict each other
        return text
    day, month = ("first", "second") if first_is_day else ("second", "first")
    table.note(f"dates such as {text.drop_nulls()[0]} are read with the {'day' if first_is_day else 'month'} first.")
    parts = [pl.col("year"), pl.col(month).str.zfill(2), pl.col(day).str.zfill(2)]
    rest = pl.col("rest").str.replace(r"^([Tt ])(\d:)", "${1}0${2}").fill_null("")
    iso = pl.concat_str(parts, separator="-") + rest
    return found.select(iso).to_series().fill_null(text)


def _of_decimals(table: Table, text: pl.Series) -> pl.Series:
    """Read decimals as float64, or as integers of a smaller unit if two of them would become one float64."""
    numbers = text.cast(pl.Float64, strict=False)
    if not (text.str.count_matches(r"\d") > FLOAT_DIGITS).any():
        return numbers
    parts = text.str.extract_groups(r"^([+-]?\d+)(?:\.(\d*))?$").struct.unnest().fill_null("")
    fraction = parts[:, 1].str.strip_chars_end("0")
    places = int(fraction.str.len_bytes().max() or 0)  # type: ignore[arg-type]
    exact = (parts[:, 0] + fraction.str.pad_end(places, "0")).cast(pl.Int64, strict=False)
    out_of_range = exact.is_null() & (parts[:, 0] != "")
    if exact.has_nulls() or exact.n_unique() == numbers.n_unique():
        return numbers.set(out_of_range, None)
    if places:
        table.note(f"times are stored in units of 10^-{places}, so that none loses its order.")
    return exact


def _of_iso(table: Table, text: pl.Series) -> pl.Series:
    """Read ISO dates; a row without a zone is refused where others have a zone that is not UTC."""
    found = text.str.extract_groups(ISO).struct.unnest()
    offset = (pl.col("hours").cast(pl.Int64) * 3600 + pl.col("minutes").cast(pl.Int64).fill_null(0) * 60).fill_null(0)
    time = pl.col("time").fill_null("00:00")
    time = pl.when(time.str.len_bytes() == 5).then(time + ":00").otherwise(time)
    date = pl.col("date").str.replace_all("/", "-") + " " + time
    columns = found.select(
        date.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False).dt.epoch("s").alias("seconds"),
        pl.when(pl.col("sign") == "-").then(-offset).otherwise(offset).alias("offset"),
        pl.col("fraction").str.pad_end(9, "0").cast(pl.Int64).fill_null(0).alias("nanos"),
        (pl.col("date").is_not_null() & pl.col("zone").is_null()).alias("bare"),
    )
    bare, has_zone = columns["bare"], found["zone"].is_not_null().any()
    if bare.any() and (columns["offset"] != 0).any():
        what = "have a time without a zone, while others have one that is not UTC"
        table.report(bare, what, "give every time its zone.", TIMESTAMP)
    elif bare.any() and has_zone:
        table.note("times without a zone are read as UTC, which the others name.")
    return _joined(table, columns["seconds"] - columns["offset"], columns["nanos"])


def _of_named_month(text: pl.Series, form: str) -> pl.Series:
    return text.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("s")


def _joined(table: Table, seconds: pl.Series, nanos: pl.Series) -> pl.Series:
    """Seconds with their fraction, exact enough that two times stay two."""
    if not (nanos != 0).any():
        return seconds
    times = seconds + nanos / NANOS
    if times.n_unique() == pl.DataFrame({"seconds": seconds, "nanos": nanos}).n_unique():
        return times
    table.note("times are stored as nanoseconds, so that none loses its order.")
    return seconds.set(seconds.abs() >= 2**63 // NANOS, None) * NANOS + nanos
