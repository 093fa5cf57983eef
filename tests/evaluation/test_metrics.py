"""Metrics against hand-computed fractions, brute force over the orders of a tie, and MiniOneRec's published SIDs."""

from __future__ import annotations

import csv
import itertools
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.evaluation import metrics
from llmrec.evaluation.metrics import Position, target_position
from llmrec.evaluation.ranking import Ranking
from llmrec.sid.published import minionerec_sids


def ranking(items, groups) -> Ranking:
    items = np.array(items)
    return Ranking(items, np.array(groups), -np.arange(items.size, dtype=float).reshape(items.shape))


@pytest.fixture
def position() -> Position:
    """Four rows over five slots: target alone at place 1, in a tie over places 1-3, absent, and alone at place 4."""
    ranked = ranking(
        [[3, 7, 1, 2, 4], [3, 7, 1, 2, 4], [3, 7, 1, -1, -1], [3, 7, 1, 2, 4]],
        [[0, 1, 2, 3, 4], [0, 1, 1, 1, 2], [0, 1, 2, -1, -1], [0, 0, 2, 3, 5]],
    )
    return target_position(ranked, np.array([7, 2, 9, 4]))


def test_target_position(position):
    np.testing.assert_array_equal(position.start, [1, 1, -1, 4])
    np.testing.assert_array_equal(position.size, [1, 3, 1, 1])
    np.testing.assert_array_equal(position.group, [1, 1, -1, 5])


def test_item_level_metrics_by_hand(position):
    log = math.log2
    np.testing.assert_allclose(metrics.recall(position, 1), [0, 0, 0, 0])
    np.testing.assert_allclose(metrics.recall(position, 2), [1, 1 / 3, 0, 0])  # one of the tie's three places
    np.testing.assert_allclose(metrics.recall(position, 5), [1, 1, 0, 1])
    np.testing.assert_allclose(metrics.ndcg(position, 2), [1 / log(3), 1 / log(3) / 3, 0, 0])
    tie = (1 / log(3) + 1 / log(4) + 1 / log(5)) / 3
    np.testing.assert_allclose(metrics.ndcg(position, 5), [1 / log(3), tie, 0, 1 / log(6)])
    np.testing.assert_allclose(metrics.mrr(position, 3), [1 / 2, (1 / 2 + 1 / 3) / 3, 0, 0])
    np.testing.assert_allclose(metrics.mrr(position, 5), [1 / 2, (1 / 2 + 1 / 3 + 1 / 4) / 3, 0, 1 / 5])


def test_sid_level_recall_counts_the_group_as_one_full_hit(position):
    np.testing.assert_array_equal(metrics.sid_recall(position, 1), [0, 0, 0, 0])
    np.testing.assert_array_equal(metrics.sid_recall(position, 2), [1, 1, 0, 0])
    np.testing.assert_array_equal(metrics.sid_recall(position, 5), [1, 1, 0, 0])  # the last row's SID is sixth
    np.testing.assert_allclose(metrics.sid_ndcg(position, 5), [1 / np.log2(3), 1 / np.log2(3), 0, 0])


def test_unfilled_slots_are_no_target_and_take_places():
    ranked = ranking([[-1, 5, 6]], [[-1, 1, 2]])  # an invalid answer wasted the first place
    position = target_position(ranked, np.array([5]))
    assert position.start == 1
    assert metrics.recall(position, 1) == 0
    assert metrics.recall(position, 2) == 1


def test_per_row_names_every_metric_in_order(position):
    assert list(metrics.per_example(position, [5, 2])) == [
        "recall@2", "recall@5", "ndcg@2", "ndcg@5", "mrr@2", "mrr@5", "sid_recall@2", "sid_recall@5",
        "sid_ndcg@2", "sid_ndcg@5",
    ]  # fmt: skip


def test_every_metric_is_documented_and_what_is_shown_is_measured():
    documented = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for name in (*metrics.METRICS, *metrics.SLOT_METRICS):
        assert f"\n| {name}@k |" in documented
    assert {*metrics.SHOWN, *metrics.SHOWN_AT_LARGEST} <= metrics.METRICS.keys()


def test_shares_of_slots_catalogue_and_answers_by_hand():
    items = np.array([[3, 7, 1], [3, 1, -1], [3, -1, -1]])
    assert metrics.unfilled(items, 1) == 0
    assert metrics.unfilled(items, 2) == pytest.approx(1 / 6)
    assert metrics.unfilled(items, 4) == pytest.approx(6 / 12)  # slots beyond R are unfilled
    assert metrics.coverage(items, 2, num_items=12) == pytest.approx(3 / 12)
    assert metrics.coverage(items, 1, num_items=12) == pytest.approx(1 / 12)
    assert metrics.invalid_rate(items, np.array([0, 1, 1])) == pytest.approx(2 / 8)
    assert metrics.invalid_rate(items[:0], np.array([])) == 0


def test_slot_metrics_by_hand():
    items = np.array([[3, 0, 1], [3, 1, -1], [3, -1, -1]])  # of 4 items, shown 1, 2, 0 and 3 times
    assert metrics.gini(items, 3, 4) == pytest.approx((3 * 3 + 1 * 2 - 1 * 1 - 3 * 0) / (4 * 6))
    assert metrics.gini(items, 1, 4) == pytest.approx(3 / 4)  # one item only
    training = np.array([3, 1, 0, 0])  # add-one: 4, 2, 1 and 1 of 8
    assert metrics.novelty(items, 1, training) == pytest.approx(3)
    assert metrics.novelty(items, 3, training) == pytest.approx((3 * 3 + 1 * 1 + 2 * 2) / 6)
    assert metrics.popularity_percentile(items, 1, training) == pytest.approx(1 / 4)  # two items share places 0 to 2
    assert metrics.popularity_percentile(items, 3, training) == pytest.approx((7 / 8 + 2 * 5 / 8 + 3 / 4) / 6)


def test_slot_metrics_of_empty_rankings():
    empty, training = np.full((2, 3), -1), np.array([1, 0])
    assert metrics.gini(empty, 3, 2) == metrics.novelty(empty, 3, training) == 0
    assert metrics.popularity_percentile(empty, 3, training) == 0


@settings(derandomize=True, max_examples=25, deadline=None)
@given(shown=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
def test_gini_is_half_the_relative_mean_difference(shown):
    items = np.repeat(np.arange(len(shown)), shown)[:, None]
    difference = np.abs(np.subtract.outer(shown, shown)).mean()
    assert metrics.gini(items, 1, len(shown)) == pytest.approx(difference / (2 * np.mean(shown)))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(training=st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_showing_every_item_once_is_the_middle_percentile(training):
    items = np.arange(len(training))[:, None]
    assert metrics.popularity_percentile(items, 1, np.array(training)) == pytest.approx(0.5)
    assert metrics.gini(items, 1, len(training)) == pytest.approx(0)
    if len(set(training)) == 1:
        assert metrics.novelty(items, 1, np.array(training)) == pytest.approx(math.log2(len(training)))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), k=st.integers(1, 8), data=st.data())
def test_shared_credit_is_the_average_over_all_orders_of_the_tie(sizes, k, data):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    target = data.draw(st.integers(0, len(groups) - 1))
    shared = target_position(ranking([np.arange(len(groups))], [groups]), np.array([target]))
    tie = np.flatnonzero(groups == groups[target])
    orders = []
    for order in itertools.permutations(tie):
        items = np.arange(len(groups))
        items[tie] = order
        orders.append(items)
    singles = ranking(orders, [np.arange(len(groups))] * len(orders))
    alone = target_position(singles, np.full(len(orders), target))
    for metric in (metrics.recall, metrics.ndcg, metrics.mrr):
        np.testing.assert_allclose(metric(shared, k), metric(alone, k).mean())


@settings(derandomize=True, max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_metrics_lie_in_the_unit_interval_and_grow_with_k(seed):
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(9)[:6] for _ in range(8)])
    items[:, 6 - rng.integers(0, 4) :] = -1
    groups = np.cumsum(rng.integers(0, 2, size=items.shape), axis=1)
    position = target_position(ranking(items, groups), rng.integers(0, 9, size=8))
    for metric in (metrics.recall, metrics.ndcg, metrics.mrr, metrics.sid_recall, metrics.sid_ndcg):
        by_k = np.stack([metric(position, k) for k in range(1, 9)])
        assert by_k.min() >= 0
        assert by_k.max() <= 1 + 1e-12
        assert (np.diff(by_k, axis=0) >= -1e-12).all()


def test_minionerec_sid_and_item_level_differ_exactly_where_sids_are_shared(data_dir):
    folder = data_dir / "amazon18-minionerec"
    table = minionerec_sids(folder)
    with lzma.open(folder / "test" / "Industrial_and_Scientific_5_2016-10-2018-11.csv.xz", "rt", newline="") as file:
        item_ids = [row["item_id"] for row in csv.DictReader(file)]
    row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
    targets = np.array([row_of[item_id] for item_id in item_ids])
    owners = [table.rows(codes) for codes in table.codes(targets)]
    items = np.array([np.pad(rows, (0, table.bucket_sizes.max() - len(rows)), constant_values=-1) for rows in owners])
    position = target_position(ranking(items, np.where(items >= 0, 0, -1)), targets)  # the right SID comes first
    item_level, sid_level = metrics.recall(position, 1), metrics.sid_recall(position, 1)
    shared = table.bucket_sizes[targets]
    np.testing.assert_allclose(item_level, 1 / shared)
    np.testing.assert_array_equal(sid_level, 1)
    np.testing.assert_array_equal(item_level != sid_level, shared > 1)
    assert ((item_level != sid_level).sum(), len(targets)) == (317, 4533)  # 7.0 % of the test targets
