"""Bootstrap intervals: known cases, whole users, statistical sanity at a fixed seed."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.data.examples import Examples
from llmrec.evaluation.bootstrap import interval, paired_difference
from llmrec.evaluation.metrics import Position
from llmrec.evaluation.protocol import COLUMNS, Outcome
from llmrec.evaluation.summary import summarise
from llmrec.evaluation.transitions import Transitions


def users(count: int) -> list[str]:
    return [f"user-{u}" for u in range(count)]


def test_a_constant_has_an_interval_of_width_zero():
    assert interval(np.full(20, 0.25), users(20)) == (0.25, 0.25, 0.25)


def test_rows_of_one_user_stay_together():
    # Two users, one of them with all the hits: resamples have mean 0, 1/2 or 1, never anything between.
    values, ids = np.array([1.0] * 5 + [0.0] * 5), ["a"] * 5 + ["b"] * 5
    mean, low, high = interval(values, ids, samples=200)
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_the_mean_counts_rows_not_users():
    mean, low, high = interval(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"], samples=2000)
    assert mean == 0.75
    assert (low, high) == (0, 1)


def test_width_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).random(2000) < 0.1
    mean, low, high = interval(values, users(2000), samples=2000)
    error = np.sqrt(mean * (1 - mean) / 2000)
    np.testing.assert_allclose([low, high], [mean - 1.96 * error, mean + 1.96 * error], atol=0.002)


def test_the_interval_covers_the_true_mean_about_95_times_of_100():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        _, low, high = interval(rng.random(200) < 0.3, users(200), samples=200, seed=trial)
        covered += low <= 0.3 <= high
    assert 88 <= covered <= 99


def test_columns_have_the_intervals_they_have_alone():
    values = np.random.default_rng(2).random((50, 3))
    together = interval(values, users(50), samples=100, seed=5)
    for column in range(3):
        alone = interval(values[:, column], users(50), samples=100, seed=5)
        np.testing.assert_allclose([part[column] for part in together], alone)


def test_a_paired_difference_is_narrower_than_two_intervals_apart():
    rng = np.random.default_rng(3)
    a = rng.random(500)
    b = a - 0.02 + rng.normal(0, 0.01, 500)  # nearly the same ranker, a little worse
    mean, low, high = paired_difference(a, b, users(500))
    assert low > 0
    assert mean == pytest.approx(0.02, abs=0.002)
    assert high - low < 0.1 * np.subtract(*interval(a, users(500))[:0:-1])


def test_the_seed_decides_the_resamples():
    values = np.random.default_rng(4).random(30)
    assert interval(values, users(30), seed=1) == interval(values, users(30), seed=1)
    assert interval(values, users(30), seed=1) != interval(values, users(30), seed=2)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="3 values and 2 user ids"):
        interval(np.zeros(3), users(2))
    with pytest.raises(ValueError, match="at least one"):
        interval(np.zeros(0), [])


def test_the_report_resamples_users_not_examples():
    """Of two users with 20 rows each one is always hit: means of users are 0, 1/2 or 1, means of rows near 1/2."""
    hit, absent = np.repeat([0, -1], 20), np.full(40, -1)
    users = np.repeat(["a", "b"], 20).tolist()
    rows = Examples(users, np.zeros(40, np.int64), np.arange(41), np.ones(40, np.int64))
    items, ones = np.ones((40, 1), np.int64), np.ones(40, np.int64)
    found = {
        (system, column): Outcome(Position(start, ones, start), items, np.zeros(40, np.int64), 1.0)
        for system, start in (("ours", hit), ("popularity", absent))
        for column in COLUMNS
    }
    report = summarise(found, rows, [1], np.array([1, 1]), Transitions(rows, 2))
    for column in COLUMNS:
        assert report["systems"]["ours"][column]["recall@1"] == 0.5
        assert report["systems"]["ours"][column]["intervals"]["recall@1"] == [0, 1]
        difference = report["differences"]["popularity"][column]["recall@1"]
        assert difference == {"mean": 0.5, "low": 0, "high": 1}
