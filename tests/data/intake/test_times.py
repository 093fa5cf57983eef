"""Times: numbers stay, dates become seconds, none loses its order, and what is ambiguous or out of range is refused."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.columns import TIMESTAMP
from llmrec.data.intake.files.rows import Rows, numbered
from llmrec.data.intake.table import Table
from llmrec.data.intake.times import to_time


def convert(times: pl.Series) -> tuple[pl.Series, list[str], list[str]]:
    """Times as numbers, problems and notes."""
    table = Table(Rows("log.csv", [], None, numbered), pl.DataFrame({TIMESTAMP: times}))
    to_time(table)
    return table.frame[TIMESTAMP], table.problems, table.rows.notes


def texts(*times: str | None) -> pl.Series:
    return pl.Series(times, dtype=pl.String)


NOON = 1_577_880_000  # 2020-01-01 12:00:00 UTC
READ = {
    "integers": (texts("5", "-7"), [5, -7]),
    "blanks around": (texts(" 1588687728 ", "\t1588687729"), [1_588_687_728, 1_588_687_729]),
    "milliseconds": (texts("1588687728923"), [1_588_687_728_923]),
    "nanoseconds": (texts("1700000000123456789", "1700000000123456790"), [1700000000123456789, 1700000000123456790]),
    "decimals": (texts("1700000000.25", "3"), [1700000000.25, 3.0]),
    "exponents": (texts("1.5e9", "1e9"), [1.5e9, 1e9]),
    "days": (texts("2020-01-01", "2020/01/02"), [NOON - 43_200, NOON + 43_200]),
    "minutes": (texts("2020-01-01 12:00", "2020-01-01T12:01"), [NOON, NOON + 60]),
    "Z": (texts("2020-01-01T12:00:00Z", "2020-01-01t12:00:01z"), [NOON, NOON + 1]),
    "UTC, as pandas, Spark and BigQuery write it": (
        texts("2020-01-01 12:00:00 UTC", "2020-01-01 12:00:01+00:00"),
        [NOON, NOON + 1],
    ),
    "UTC, as Go writes it": (texts("2020-01-01 12:00:00 +0000 UTC"), [NOON]),
    "offsets": (texts("2020-01-01T14:00:00+02:00", "2020-01-01 06:30:00-0530", "2020-01-01 04:00:00 -08"), [NOON] * 3),
    "fractions": (texts("2020-01-01 12:00:00.5", "2020-01-01 12:00:00,250"), [NOON + 0.5, NOON + 0.25]),
    "before 1970 and far": (
        texts("1969-12-31", "9999-12-31", "0001-01-01"),
        [-86_400, 253_402_214_400, -62_135_596_800],
    ),
    "Twitter's": (texts("Wed Jan 01 12:00:00 +0000 2020", "Wed Jan 01 14:00:01 +0200 2020"), [NOON, NOON + 1]),
    "e-mail's": (texts("Wed, 01 Jan 2020 12:00:00 +0000"), [NOON]),
    "named months": (texts("January 1, 2020", "January 2, 2020"), [NOON - 43_200, NOON + 43_200]),
    "Date": (pl.Series([dt.date(2020, 1, 1)]), [NOON - 43_200]),
    "Date that no Datetime holds": (pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date), [(2**31 - 1) * 86_400]),
    "Datetime": (pl.Series([dt.datetime(2020, 1, 1, 12, 0, 0, 500_000)]), [NOON + 0.5]),
    "Datetime, ms": (pl.Series([dt.datetime(2020, 1, 1, 12)], dtype=pl.Datetime("ms")), [NOON]),
    "Datetime with a zone": (
        pl.Series([dt.datetime(2020, 1, 1, 12)]).dt.replace_time_zone("Asia/Tokyo"),
        [NOON - 9 * 3600],
    ),
    "Datetime far off": (pl.Series([2**62]).cast(pl.Datetime("us")), [2**62 / 1e6]),
    "Decimal": (pl.Series([Decimal("1.5")]), [1.5]),
    "categories": (pl.Series(["2020-01-01 12:00"], dtype=pl.Categorical), [NOON]),
    "small integers": (pl.Series([3], dtype=pl.Int16), [3]),
}


@pytest.mark.parametrize("case", READ)
def test_read(case):
    given_times, expected = READ[case]
    times, problems, notes = convert(given_times)
    assert times.to_list() == expected and not problems and not notes
    assert times.dtype == (pl.Float64 if any(isinstance(time, float) for time in expected) else pl.Int64)


EXACT = {
    "seconds with nanoseconds": (
        texts("1700000000.123456789", "1700000000.12345679"),
        [1700000000123456789, 1700000000123456790],
    ),
    "dates with nanoseconds": (
        texts("2020-01-01 12:00:00.000000001Z", "2020-01-01 12:00:00Z"),
        [NOON * 10**9 + 1, NOON * 10**9],
    ),
    "Datetime, ns": (
        pl.Series([NOON * 10**9 + 1, NOON * 10**9]).cast(pl.Datetime("ns")),
        [NOON * 10**9 + 1, NOON * 10**9],
    ),
    "Decimal": (
        pl.Series([Decimal("1700000000.1234567"), Decimal("1700000000.1234568")]),
        [17000000001234567, 17000000001234568],
    ),
}


YEAR_LAST = {
    "a German shop": (("01.02.2023 09:30", "26.11.2023 9:05:01"), "day", ("2023-02-01 09:30", "2023-11-26 09:05:01")),
    "a French export": (("03/04/2012", "13/04/2012"), "day", ("2012-04-03", "2012-04-13")),
    "an American export": (("4/3/2012 23:59", "4/13/2012 1:00"), "month", ("2012-04-03 23:59", "2012-04-13 01:00")),
    "with a zone, and a comma": (("13-04-2012, 10:00:00Z",), "day", ("2012-04-13 10:00:00Z",)),
}


@pytest.mark.parametrize("case", YEAR_LAST)
def test_dates_that_end_with_the_year_are_read_if_a_row_shows_the_order(case):
    written, first, iso = YEAR_LAST[case]
    times, problems, notes = convert(texts(*written, *["03.04.2012"][: first == "day"]))
    assert not problems and times.to_list()[: len(iso)] == convert(texts(*iso))[0].to_list()
    assert any(f"are read with the {first} first" in note for note in notes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2100, 1, 1)), min_size=1), st.sampled_from("./-"))
def test_a_column_of_days_is_read_as_it_was_written_or_refused(days, sign):
    times, problems, _ = convert(texts(*(day.strftime(f"%d{sign}%m{sign}%Y") for day in days)))
    shown = any(day.day > 12 for day in days)
    midnights = [int(dt.datetime(d.year, d.month, d.day, tzinfo=dt.UTC).timestamp()) for d in days]
    assert (times.to_list() == midnights and not problems) if shown else problems


@pytest.mark.parametrize("case", EXACT)
def test_times_that_a_float_would_merge_become_integers(case):
    given_times, expected = EXACT[case]
    times, problems, notes = convert(given_times)
    assert times.to_list() == expected and not problems
    assert len(notes) == 1 and "so that none loses its order" in notes[0]


REFUSED = {
    "day or month": (
        texts("2020-01-01", "03/04/2012"),
        r"1 row .*row 2 \('03/04/2012'\); in these dates, the day or the month may come first",
    ),
    "day or month, with points": (
        texts("03.04.2012 10:00"),
        "the day or the month may come first, and no row shows which; use a number",
    ),
    "day and month both above 12": (texts("26.11.2023", "11.26.2023"), "2 rows have no readable timestamp"),
    "a month above 12 for a column of days": (texts("26.11.2023", "01.02.2023", "x"), "row 3"),
    "no such day": (texts("2020-01-01", "2020-02-30"), r"row 2 \('2020-02-30'\)"),
    "no such hour": (texts("2020-01-01 24:30:00"), "no readable timestamp"),
    "year of five digits": (texts("2020-01-01", "12020-01-01"), "row 2"),
    "a place as zone": (texts("2020-01-01 10:00 Europe/Berlin"), "no readable timestamp"),
    "no such offset": (texts("2020-01-01 10:00:00+25:00"), "no readable timestamp"),
    "an offset in some rows": (
        texts("2020-01-01 10:00:00", "2020-01-01 10:00:00+02:00"),
        "1 row has a time without a zone.*row 1",
    ),
    "numbers and dates": (texts("2020-01-01", "2020-01-02", "5"), r"row 3 \('5'\)"),
    "out of int64": (texts("99999999999999999999", "5"), "row 1 .'99999999999999999999'"),
    "nanoseconds out of int64": (texts("2300-01-01 00:00:00.123456788", "2300-01-01 00:00:00.123456789"), "2 rows"),
    "UInt64 out of int64": (pl.Series([1, 2**63], dtype=pl.UInt64), "row 2"),
    "Int128 out of int64": (pl.Series([2**100], dtype=pl.Int128), "row 1"),
    "nan": (texts("nan", "1.5"), "row 1"),
    "inf": (pl.Series([1.5, float("inf")]), "row 2"),
    "missing": (texts("5", None, ""), "2 rows have no readable timestamp, first at row 2; "),
    "a time of day": (pl.Series([dt.time(1)]), "timestamp holds Time"),
    "a duration": (pl.Series([dt.timedelta(1)]), "timestamp holds Duration"),
    "lists": (pl.Series([[1]]), "timestamp holds List"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    given_times, message = REFUSED[case]
    _, problems, _ = convert(given_times)
    with pytest.raises(ValueError, match=message):
        raise ValueError(" ".join(problems))


def test_rows_without_a_zone_are_utc_where_others_say_utc():
    times, problems, notes = convert(texts("2020-01-01T12:00:00", "2020-01-01T12:00:01Z"))
    assert times.to_list() == [NOON, NOON + 1] and not problems
    assert notes == ["log.csv: times without a zone are read as UTC, which the others name."]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**33), st.integers(0, 10**9 - 1)), min_size=2, max_size=6), st.booleans())
def test_any_two_times_keep_their_order(moments, as_dates):
    moments += [(seconds, nanos ^ 1) for seconds, nanos in moments if nanos ^ 1 < 10**9]
    written = [f"{seconds}.{nanos:09d}" for seconds, nanos in moments]
    if as_dates:
        start = dt.datetime(1970, 1, 1)
        written = [f"{start + dt.timedelta(seconds=seconds)}.{nanos:09d}Z" for seconds, nanos in moments]
    times, problems, _ = convert(texts(*written))
    exact = [Fraction(seconds) + Fraction(nanos, 10**9) for seconds, nanos in moments]
    assert not problems
    order = sorted(range(len(moments)), key=exact.__getitem__)
    for one, other in itertools.pairwise(order):
        assert (times[one] < times[other]) == (exact[one] < exact[other])
