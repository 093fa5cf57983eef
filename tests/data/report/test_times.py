"""Times of a log: units that are mixed, the unit, gaps, ties."""

from __future__ import annotations

import polars as pl
import pytest

from llmrec.data.report.behaviour import coded
from llmrec.data.report.times import refuse_mixed_units, tie_facts, time_facts, unit_of
from llmrec.data.split import in_order

S = 1_588_687_728  # 2020-05-05


def log(times, users=None) -> pl.DataFrame:
    users = users or ["u"] * len(times)
    return pl.DataFrame({"user_id": users, "item_id": [f"i{n}" for n in range(len(times))], "timestamp": times})


MIXED = {
    "seconds and milliseconds": (
        [S, (S + 9) * 1000, S + 20, (S + 30) * 1000],
        "2 rows are seconds .* 2 rows are milli",
    ),
    "one row of microseconds": ([S, S + 1, S + 2, (S + 3) * 10**6], "3 rows are seconds .* 1 row is microseconds"),
    "milliseconds and nanoseconds": ([S * 1000, S * 10**9], "milliseconds .* nanoseconds"),
    "three units": ([S, S * 1000, S * 10**6], "seconds .*, 1 row is milliseconds .*, 1 row is microseconds"),
    "fractions of seconds": ([S + 0.5, S * 1000.0], "seconds .* milliseconds"),
    "the 1990s and today": ([700_000_000, 1_700_000_000_000], "seconds .* milliseconds"),
}


@pytest.mark.parametrize("case", MIXED)
def test_mixed_units_are_refused_with_their_numbers(case):
    times, message = MIXED[case]
    with pytest.raises(ValueError, match=rf"log\.csv: the times are in different units.*{message}.*divide"):
        refuse_mixed_units(log(times), "log.csv")


@pytest.mark.parametrize("times", [[0, 1, 5000], [S, S + 10**8], [S * 1000, S * 1000 + 5], [-1, S], [10**7, 10**10]])
def test_times_of_one_unit_pass(times):
    refuse_mixed_units(log(times), "log.csv")


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")]
)
def test_the_unit_the_span_and_the_longest_gap(factor, unit):
    days = [0, 1, 1, 2, 10, 11]
    facts = time_facts(pl.Series([(S + day * 86_400) * factor for day in days]))
    assert (facts["unit"], facts["first"], facts["last"], facts["days"]) == (unit, "2020-05-05", "2020-05-16", 12)
    assert (facts["longest_gap_days"], facts["gap_from"], facts["gap_to"]) == (7, "2020-05-07", "2020-05-15")
    assert sum(facts["over_time"]["count"]) == 6 and facts["outside"] == 0


def test_numbers_that_are_no_dates_have_no_unit():
    facts = time_facts(pl.Series([0, 1, 2, 3]))
    assert facts == {"unit": None, "first": 0, "last": 3, "outside": 0}
    assert unit_of(pl.Series([0, 0, S])) is None


def test_a_missing_time_written_as_zero_is_told_apart():
    facts = time_facts(pl.Series([S, 0, S + 86_400, S]))
    assert (facts["unit"], facts["outside"], facts["outside_example"], facts["first"]) == (
        "seconds",
        1,
        0,
        "2020-05-05",
    )


def test_ties_are_those_of_different_items_and_count_among_the_last_three():
    rows = {
        "early tie": [("a", 1), ("b", 1), ("c", 2), ("d", 3), ("e", 4)],
        "late tie": [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 4)],
        "same item": [("a", 1), ("b", 2), ("c", 3), ("c", 3)],
        "none": [("a", 1), ("b", 2), ("c", 3)],
    }
    frame = pl.DataFrame(
        [(user, item, time) for user, visits in rows.items() for item, time in visits],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    assert tie_facts(coded(in_order(frame))) == {"users": 0.5, "last": 0.25}


def test_ties_do_not_reach_over_to_the_next_user():
    frame = log([1, 1, 1], ["a", "b", "c"])
    assert tie_facts(coded(in_order(frame))) == {"users": 0.0, "last": 0.0}
