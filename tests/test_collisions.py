"""Collision policies keep what they promise: distinct SIDs, prefixes left as they were, levels large enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec.collisions import (
    check_capacity,
    expected_collision_rate,
    num_collisions,
    resolve,
    sinkhorn_reassign,
    suffix_ordinal,
)
from llmrec.tokenizers import Encoded

PROPERTY = settings(derandomize=True, max_examples=25, deadline=None)
CODES = hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(0, 3))


def encoded(codes: np.ndarray, cost: np.ndarray | None = None) -> Encoded:
    """Codes of a tokenizer with four codes on the last level, and costs that are random where not given."""
    if cost is None:
        cost = np.random.default_rng(0).random((len(codes), 4))
    return Encoded(codes, lambda rows: torch.as_tensor(cost[rows], dtype=torch.float32), 1.0)


def test_suffix_follows_item_rows_and_is_given_to_every_item():
    codes = np.array([[0, 1], [2, 2], [0, 1], [2, 0], [0, 1]])
    resolved, sizes, notes = resolve("suffix_ordinal", encoded(codes), [4, 4])
    assert resolved.tolist() == [[0, 1, 0], [2, 2, 0], [0, 1, 1], [2, 0, 0], [0, 1, 2]]
    assert sizes == [4, 4, 4] and notes == []


def test_suffix_level_grows_to_the_largest_bucket():
    resolved, sizes, notes = resolve("suffix_ordinal", encoded(np.zeros((6, 2), np.int64)), [4, 4])
    assert resolved[:, 2].tolist() == [0, 1, 2, 3, 4, 5]
    assert sizes == [4, 4, 6]
    assert notes == ["6 items share all codes, so the suffix level has 6 codes."]


@PROPERTY
@given(codes=CODES)
def test_suffix_makes_any_codes_distinct_and_keeps_them_as_prefix(codes):
    resolved, size = suffix_ordinal(codes, 4)
    assert num_collisions(resolved) == 0
    np.testing.assert_array_equal(resolved[:, :-1], codes)
    assert resolved[:, -1].max() < size


@PROPERTY
@given(codes=CODES, seed=st.integers(0, 99))
def test_sinkhorn_reassign_makes_any_codes_distinct_and_moves_the_last_level_only(codes, seed):
    cost = np.random.default_rng(seed).random((len(codes), 4))
    sizes = [4] * codes.shape[1]
    resolved, new_sizes, notes = resolve("sinkhorn_reassign", encoded(codes, cost), sizes)
    assert num_collisions(resolved) == 0
    np.testing.assert_array_equal(resolved[:, : codes.shape[1] - 1], codes[:, :-1])
    assert (resolved.max(axis=0) < new_sizes).all()
    assert num_collisions(sinkhorn_reassign(encoded(codes, cost))[0]) <= num_collisions(codes)
    assert (len(new_sizes) > len(sizes)) == any("suffix_ordinal" in note for note in notes)


def test_sinkhorn_reassign_moves_the_item_for_which_it_is_cheaper():
    # Both items have code 0; the second one is nearly as close to code 3.
    cost = np.array([[0.0, 9.0, 9.0, 9.0], [0.0, 9.0, 9.0, 0.1]])
    resolved, sizes, notes = resolve("sinkhorn_reassign", encoded(np.array([[1, 0], [1, 0]]), cost), [4, 4])
    assert resolved.tolist() == [[1, 0], [1, 3]]
    assert sizes == [4, 4]
    assert notes == ["sinkhorn_reassign ran 1 rounds: 1 -> 0 collisions."]


def test_items_that_sinkhorn_cannot_tell_apart_get_a_suffix_and_the_report_says_so():
    codes, cost = np.array([[1, 0], [1, 0], [2, 2]]), np.tile([0.0, 1.0, 2.0, 3.0], (3, 1))
    resolved, sizes, notes = resolve("sinkhorn_reassign", encoded(codes, cost), [4, 4])
    assert num_collisions(resolved) == 0 and sizes == [4, 4, 4]
    assert notes == [
        "sinkhorn_reassign ran 20 rounds: 1 -> 1 collisions.",
        "What still collides was told apart by suffix_ordinal.",
    ]


def test_accept_changes_nothing():
    codes = np.array([[0, 1], [0, 1]])
    assert resolve("accept", encoded(codes), [4, 4]) == (codes, [4, 4], [])


def test_expected_collision_rate_of_the_formula():
    # Two items in four cells collide with probability 1/4: expected items less distinct codes 1/4, over two items.
    assert expected_collision_rate(2, [2, 2]) == pytest.approx(1 / 8)
    assert expected_collision_rate(24_600, [48] * 3) == pytest.approx(0.10, abs=0.005)
    assert expected_collision_rate(12_000, [256] * 3) == pytest.approx(0.0004, abs=0.0001)


@pytest.mark.parametrize("policy", ["accept", "sinkhorn_reassign"])
def test_more_items_than_codes_is_refused_where_no_suffix_is_promised(policy):
    with pytest.raises(ValueError, match=r"17 items .* 2 levels of 4 codes \(16 semantic IDs.*num_levels 3 or more"):
        check_capacity(policy, 17, [4, 4])
    check_capacity(policy, 16, [4, 4])
    check_capacity("suffix_ordinal", 17, [4, 4])
