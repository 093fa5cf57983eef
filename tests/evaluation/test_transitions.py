"""Transitions of training sequences, against values by hand and against a dense matrix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.examples import NONE, Examples
from llmrec.evaluation import transitions as file
from llmrec.evaluation.transitions import Transitions


def examples_of(*sequences: list[int]) -> Examples:
    """Sequences of item rows, the last of each being the target."""
    values = np.array([item for sequence in sequences for item in sequence[:-1]], dtype=np.int64)
    offsets = np.cumsum([0, *(len(sequence) - 1 for sequence in sequences)])
    targets = np.array([sequence[-1] for sequence in sequences], dtype=np.int64)
    return Examples([f"user-{i}" for i in range(len(sequences))], values, offsets, targets)


def test_by_hand():
    """0 1 2, 0 1, 3 and 2 3 3: 0-1 twice, 1-2, 2-3 and 3-3 once; nothing leads from one user to the next."""
    found = Transitions(examples_of([0, 1, 2], [0, 1], [3], [2, 3, 3]), 5)
    before, after = np.array([0, 1, 2, 3, 0, 2, 1, 0, 4, 1, 3]), np.array([1, 2, 3, 3, 2, 1, 3, 3, 0, 0, 0])
    assert found.counts(before, after).tolist() == [2, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    # 0-1-2, 1-2-3; 2-3-3 and 3-3-3 over the repeated item; 0-3 needs three steps
    expected = [False, False, True, True, True, False, True, False, False, False, False]
    assert found.are_composable(before, after).tolist() == expected


def test_the_last_item_of_each_history():
    assert examples_of([4, 2, 0], [3], [1, 0]).last_items().tolist() == [2, NONE, 1]
    assert examples_of().last_items().tolist() == []


@pytest.mark.parametrize("sequences", [[], [[2]], [[1], [2]]], ids=str)
def test_without_a_transition_nothing_is_seen(sequences):
    found = Transitions(examples_of(*sequences), 3)
    pairs = np.array([0, 1, 2]), np.array([1, 2, 2])
    assert found.counts(*pairs).tolist() == [0, 0, 0] and not found.are_composable(*pairs).any()


@settings(derandomize=True, max_examples=50, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=8),
    entries=st.sampled_from([1, 5, 2**22]),
)
def test_two_routes_agree_however_few_are_compared_at_a_time(sequences, entries):
    """The squared matrix of all transitions; every pair is asked."""
    dense = np.zeros((8, 8), dtype=np.int64)
    for sequence in sequences:
        np.add.at(dense, (sequence[:-1], sequence[1:]), 1)
    before, after = (grid.ravel() for grid in np.mgrid[:8, :8])
    found = Transitions(examples_of(*sequences), 8)
    np.testing.assert_array_equal(found.counts(before, after), dense.ravel())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "ENTRIES", entries)
        np.testing.assert_array_equal(found.are_composable(before, after), (dense @ dense > 0).ravel())


def test_law_1_only_training_sequences_are_read(catalog):
    found = Transitions(catalog.train, catalog.num_items)
    pairs = {(a, b) for sequence in catalog.train.sequences() for a, b in itertools.pairwise(sequence)}
    assert {(int(key) // 12, int(key) % 12) for key in found.keys} == pairs
    assert found.times.sum() == 12  # three items of each of six users


def test_a_large_catalogue_needs_no_square():
    """Two million items, of which one follows and precedes a million others."""
    size, others = 2_000_000, np.arange(1, 1_000_001)
    ends = np.zeros(len(others), np.int64)
    values = np.concatenate([np.stack([others, ends], axis=1).ravel(), ends])
    offsets = np.concatenate([np.arange(0, 2 * len(others), 2), 2 * len(others) + np.arange(len(others) + 1)])
    train = Examples([""] * 2 * len(others), values, offsets, np.concatenate([others, others]))
    found = Transitions(train, size)
    before, after = np.array([0, 0, 5, 7, 1_500_000]), np.array([3, 0, 0, 9, 3])
    assert found.counts(before, after).tolist() == [2, 0, 1, 0, 0]
    assert found.are_composable(before, after).tolist() == [False, True, False, True, False]


@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), max_size=9), st.integers(0, 8))
def test_the_pairs_of_some_examples_answer_as_all_do(sequences, count):
    train = examples_of(*sequences)
    asked = examples_of(*[[each % 8, (each * 3) % 8, 7 - each] for each in range(count)], [5])
    kept, whole = Transitions(train, 8, asked), Transitions(train, 8)
    filled = np.flatnonzero(asked.last_items() != NONE)
    pairs = asked.last_items()[filled], asked.targets[filled]
    assert kept.counts(*pairs).tolist() == whole.counts(*pairs).tolist()
    assert kept.are_composable(*pairs).tolist() == whole.are_composable(*pairs).tolist()
    assert len(kept.keys) <= len(whole.keys)
