"""Strata against hand-computed bins and shares, and as a partition of all rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.examples import Examples
from llmrec.evaluation.bootstrap import interval
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.strata import (
    exposure,
    find_strata,
    history_bin,
    popularity_bin,
    stratify,
)
from llmrec.evaluation.transitions import Transitions

FAMILIES = [*((family, None) for family in ("popularity", "history", "transition")), *(("beam", c) for c in COLUMNS)]
COUNTS = np.array([6, 1, 0, 2, 1])  # of ten interactions: 1 + 1 lie in [0, 2], 2 in [2, 4], 6 in [4, 10]


def make_rows(targets, lengths) -> Examples:
    user_ids = [f"user-{i // 2}" for i in range(len(targets))]
    return Examples(user_ids, np.zeros(sum(lengths), np.int64), np.cumsum([0, *lengths]), np.array(targets, np.int64))


def random_rows(rng: np.random.Generator, num_items: int, count: int = 30) -> Examples:
    return make_rows(rng.integers(0, num_items, size=count), rng.integers(0, 60, size=count))


def random_transitions(rng: np.random.Generator, num_items: int) -> Transitions:
    return Transitions(random_rows(rng, num_items), num_items)


def random_starts(rng: np.random.Generator, count: int = 30) -> dict[str, np.ndarray]:
    """Places of the targets in both columns, -1 where they were not found."""
    return {column: rng.integers(-1, 3, size=count) for column in COLUMNS}


def test_deciles_are_tenths_of_the_interactions_by_hand():
    # The middles of the three groups lie at 1, 3 and 7 of 10.
    np.testing.assert_array_equal(popularity_bin(COUNTS), [8, 2, 0, 4, 2])


def test_deciles_of_a_long_tail_hold_as_many_interactions_not_as_many_items():
    training = np.repeat([1, 10, 100], [10_000, 1000, 100])  # 10,000 interactions each
    bins = popularity_bin(training)
    np.testing.assert_array_equal(np.unique(bins), [2, 6, 9])
    np.testing.assert_array_equal(np.bincount(bins, weights=training)[[2, 6, 9]], 10_000)


def test_items_of_any_count_are_spread_over_ten_deciles():
    training = np.arange(1, 1001)
    share = np.bincount(popularity_bin(training), weights=training)[1:] / training.sum()
    np.testing.assert_allclose(share, 0.1, atol=0.002)


def test_without_training_interactions_every_item_is_cold():
    assert popularity_bin(np.zeros(3, np.int64)).tolist() == [0, 0, 0]


def test_histories_are_binned_by_hand():
    lengths = np.array([0, 1, 2, 3, 4, 5, 9, 10, 19, 20, 49, 50, 200])
    assert history_bin(lengths).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_strata_by_hand():
    """Training has 1-2 twice and 2-0 once; the histories of the examples end in 1, 1, 2, 3 and nothing."""
    train = Examples(["a", "b"], np.array([1, 2, 1]), np.array([0, 2, 3]), np.array([0, 2]))
    examples = Examples(
        ["u"] * 5, np.array([1, 4, 1, 0, 2, 3]), np.array([0, 1, 3, 5, 6, 6]), np.array([2, 0, 4, 1, 0])
    )
    starts = {"plain": np.array([0, 3, -1, -1, 7]), "seen_excluded": np.array([0, 1, 2, 3, 4])}
    strata = find_strata(examples, COUNTS, Transitions(train, 5), starts)
    found = {(s.family, s.name, s.column): (s.least, s.most, s.examples.tolist()) for s in strata}
    assert found == {
        ("popularity", "cold", None): (0, 0, [0]),
        ("popularity", "decile 2", None): (1, 1, [2, 3]),
        ("popularity", "decile 8", None): (6, 6, [1, 4]),
        ("history", "0", None): (0, 0, [4]),
        ("history", "1-2", None): (1, 2, [0, 1, 2, 3]),
        ("transition", "seen", None): (2, 2, [0]),
        ("transition", "composable", None): (0, 0, [1]),
        ("transition", "never seen", None): (0, 0, [2, 3]),
        ("transition", "no history", None): (0, 0, [4]),
        ("beam", "within", "plain"): (0, 7, [0, 1, 4]),
        ("beam", "outside", "plain"): (-1, -1, [2, 3]),
        ("beam", "within", "seen_excluded"): (0, 4, [0, 1, 2, 3, 4]),
    }


def test_long_histories_are_told_apart_by_hand():
    strata = find_strata(make_rows([0, 0], [7, 50]), COUNTS, Transitions(make_rows([], []), 5), {})
    assert [(s.name, s.least, s.most) for s in strata if s.family == "history"] == [("5-9", 7, 7), ("50+", 50, 50)]
    assert [s.name for s in strata if s.family == "transition"] == ["never seen"]


def test_training_counts_see_training_rows_only(catalog):
    """Law 1; the last training item of a user is the target of its training row."""
    counts = catalog.training_counts
    assert counts.sum() == 18  # three items of each of six users
    sequences = np.concatenate(catalog.train.sequences())
    assert counts.tolist() == [(sequences == item).sum() for item in range(12)]


@settings(derandomize=True, max_examples=25, deadline=None)
@given(training=st.lists(st.integers(0, 9), min_size=1, max_size=20), seed=st.integers(0, 2**32 - 1))
def test_every_example_is_in_one_stratum_of_each_family(training, seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, len(training))
    strata = find_strata(rows, np.array(training), random_transitions(rng, len(training)), random_starts(rng))
    for family, column in FAMILIES:
        of_family = [s.examples for s in strata if (s.family, s.column) == (family, column)]
        np.testing.assert_array_equal(np.sort(np.concatenate(of_family)), np.arange(len(rows)))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(training=st.lists(st.integers(0, 9), min_size=2, max_size=20), seed=st.integers(0, 2**32 - 1))
def test_deciles_follow_the_counts_whatever_the_order_of_items(training, seed):
    counts = np.array(training)
    bins = popularity_bin(counts)
    order = np.random.default_rng(seed).permutation(len(counts))
    np.testing.assert_array_equal(popularity_bin(counts[order]), bins[order])
    by_count = np.argsort(counts, kind="stable")
    assert (np.diff(bins[by_count]) >= 0).all()
    assert ((counts == 0) == (bins == 0)).all() and bins.max() <= 10


def test_means_within_strata_add_up_and_have_the_intervals_of_their_examples_alone():
    rng = np.random.default_rng(0)
    rows, training = random_rows(rng, 8), rng.integers(0, 9, size=8)
    values = {("ours", "plain"): {"recall@3": rng.random(30), "ndcg@3": rng.random(30), "recall@1": rng.random(30)}}
    starts = {"plain": random_starts(rng)["plain"]}
    strata = find_strata(rows, training, random_transitions(rng, 8), starts)
    found = stratify(strata, values, starts, rows.user_ids, 3, seed=1)
    for stratum, entry in zip(strata, found, strict=True):
        chosen = [rows.user_ids[row] for row in stratum.examples]
        assert (entry["num_examples"], entry["num_users"]) == (len(chosen), len(set(chosen)))
        recall = entry["systems"]["ours"]["plain"]["recall@3"]
        alone = interval(values["ours", "plain"]["recall@3"][stratum.examples], chosen, seed=1)
        assert list(recall.values()) == pytest.approx([float(part) for part in alone])
        assert entry["in_beam"] == {"plain": (starts["plain"][stratum.examples] >= 0).mean()}
    for family in ("popularity", "history", "transition", "beam"):
        parts = [
            (e["num_examples"], e["systems"]["ours"]["plain"]["ndcg@3"]["mean"]) for e in found if e["family"] == family
        ]
        total = sum(count * mean for count, mean in parts) / 30
        assert total == pytest.approx(values["ours", "plain"]["ndcg@3"].mean())


def test_a_stratum_of_one_column_has_only_that_one():
    starts = {"plain": np.array([0, -1]), "seen_excluded": np.array([-1, -1])}
    rows = make_rows([0, 1], [1, 1])
    strata = find_strata(rows, COUNTS, Transitions(make_rows([], []), 5), starts)
    values = {("ours", column): {"recall@1": np.ones(2), "ndcg@1": np.ones(2)} for column in COLUMNS}
    found = stratify(strata, values, starts, rows.user_ids, 1, seed=0)
    of_beam = [
        (e["name"], e["column"], list(e["systems"]["ours"]), e["in_beam"]) for e in found if e["family"] == "beam"
    ]
    assert of_beam == [
        ("within", "plain", ["plain"], {"plain": 1}),
        ("outside", "plain", ["plain"], {"plain": 0}),
        ("outside", "seen_excluded", ["seen_excluded"], {"seen_excluded": 0}),
    ]
    assert [e["in_beam"] for e in found if e["family"] == "transition"] == [{"plain": 0.5, "seen_excluded": 0}]
    assert all(list(e["systems"]["ours"]) == list(COLUMNS) for e in found if e["column"] is None)


def test_exposure_by_hand():
    shown = {("ours", "plain"): np.array([[0, 3], [0, -1]]), ("repeat", "plain"): np.full((2, 2), -1)}
    bins = exposure(COUNTS, np.array([0, 0, 2, 4]), shown)
    assert [(b["name"], b["least"], b["most"], b["num_items"]) for b in bins] == [
        ("cold", 0, 0, 1), ("decile 2", 1, 1, 2), ("decile 4", 2, 2, 1), ("decile 8", 6, 6, 1),
    ]  # fmt: skip
    assert [b["training_share"] for b in bins] == [0, 0.2, 0.2, 0.6]
    assert [b["target_share"] for b in bins] == [0.25, 0.25, 0, 0.5]
    assert [b["slot_share"]["ours"]["plain"] for b in bins] == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert [b["slot_share"]["repeat"]["plain"] for b in bins] == [0, 0, 0, 0]
