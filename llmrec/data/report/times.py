"""Times of a log: their unit, mixed units, the span they cover, gaps, and ties that leave an order to chance.

A number is taken for a time since 1970 in the unit in which it lies between 1990 and 2100; these ranges do not overlap.
Other numbers, such as 0, 1, 2, order a history as well, but have no dates.
"""

from __future__ import annotations

import datetime as dt

import polars as pl

from llmrec.data.columns import TIMESTAMP
from llmrec.runtime.manifest import JsonObject

FIRST_S, LAST_S = 631_152_000, 4_102_444_800  # 1990 and 2100
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
BINS = 40  # of the plot over time
DAY_S = 86_400


def refuse_mixed_units(interactions: pl.DataFrame, name: str) -> None:
    """Refuse times of which some are, for example, seconds and others milliseconds.

    Histories would be sorted by unit before they are sorted by time, and every target would be wrong.

    Args:
        interactions: Log with the column timestamp.
        name: File that the message names.

    Raises:
        ValueError: With the number of rows and an example of each unit, and the remedy.
    """
    counts = unit_counts(interactions[TIMESTAMP])
    if len(counts) < 2:
        return
    time = interactions[TIMESTAMP]
    examples = {unit: time.filter(_within(time, unit))[0] for unit in counts}
    said = ", ".join(
        f"{count:,} {'row is' if count == 1 else 'rows are'} {unit} (such as {examples[unit]})"
        for unit, count in counts.items()
    )
    raise ValueError(
        f"{name}: the times are in different units since 1970: {said}. They differ by a factor of 1,000 or more, so "
        "histories would be in a wrong order. Bring them into one unit, for example divide milliseconds by 1,000."
    )


def unit_counts(time: pl.Series) -> dict[str, int]:
    """Unit -> number of times that lie between 1990 and 2100 in it, for units that have any."""
    counts = {unit: int(_within(time, unit).sum()) for unit in UNITS}
    return {unit: count for unit, count in counts.items() if count}


def unit_of(time: pl.Series) -> str | None:
    """The unit of the times; None if most of them are no times since 1970."""
    return next((unit for unit, count in unit_counts(time).items() if 2 * count > len(time)), None)


def time_facts(time: pl.Series) -> JsonObject:
    """Facts about the times of a log.

    Args:
        time: Times of all interactions, in any order; at least one.

    Returns:
        unit: unit of the times, None if they are other numbers. first, last: smallest and largest time, as a date if
        there is a unit. outside: number of times that are no dates between 1990 and 2100 although most are, and
        outside_example. With a unit also days, and if there are several days, longest_gap_days, gap_from, gap_to, and
        over_time: date and number of interactions of each of BINS equal parts of the span.
    """
    unit = unit_of(time)
    first, last = time.min(), time.max()
    facts: JsonObject = {"unit": unit, "first": first, "last": last, "outside": 0}
    if unit is None:
        return facts
    inside = _within(time, unit)
    outside = time.filter(~inside)
    if len(outside):
        facts |= {"outside": len(outside), "outside_example": outside[0]}
    days = (time.filter(inside) / UNITS[unit] / DAY_S).cast(pl.Float64)
    whole = days.floor().unique().sort()
    facts |= {"first": _date(whole[0]), "last": _date(whole[-1]), "days": int(whole[-1] - whole[0]) + 1}
    if len(whole) > 1:
        gap = whole.diff().fill_null(0)
        at = int(gap.arg_max() or 0)
        facts |= {"longest_gap_days": int(gap[at]) - 1, "gap_from": _date(whole[at - 1]), "gap_to": _date(whole[at])}
        facts["over_time"] = _over_time(days, float(whole[0]), float(whole[-1]) + 1)
    return facts


def tie_facts(coded: pl.DataFrame) -> JsonObject:
    """Users who have several items at one time, whose order is then that of the file.

    Args:
        coded: Result of `behaviour.coded`.

    Returns:
        users: share of users with a tie between different items; last: share of users with one among their last three
        interactions, which decides what leave-one-out holds out.
    """
    with_last = [pl.col(name) == pl.col(name).shift() for name in ("user", TIMESTAMP)]
    tied = pl.all_horizontal(*with_last, pl.col("item") != pl.col("item").shift()).fill_null(False)
    of_users = coded.lazy().select("user", tied.alias("tied")).group_by("user", maintain_order=True)
    shares = of_users.agg(pl.col("tied").any().alias("users"), pl.col("tied").tail(2).any().alias("last"))
    return shares.select(pl.col("users", "last").mean()).collect().row(0, named=True)


def _within(time: pl.Series, unit: str) -> pl.Series:
    return time.is_between(FIRST_S * UNITS[unit], LAST_S * UNITS[unit])


def _date(days: float) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=int(days))).isoformat()


def _over_time(days: pl.Series, first: float, end: float) -> JsonObject:
    width = (end - first) / BINS
    bins = ((days - first) / width).floor().cast(pl.Int32).clip(0, BINS - 1).value_counts()
    counts = dict(bins.iter_rows())
    centres = [round(first + (number + 0.5) * width, 3) for number in range(BINS)]
    return {"date": [_date(centre) for centre in centres], "count": [counts.get(number, 0) for number in range(BINS)]}
