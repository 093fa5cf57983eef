"""Collision policies keep what they promise: distinct SIDs, prefixes left as they were, levels large enough."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec.sid.groups import buckets, ordinals
from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers import Encoded
from llmrec.tokenizers.collisions import check_capacity, expected_collision_rate, num_collisions, resolve
from llmrec.tokenizers.collisions.append import cheapest_with_room
from llmrec.tokenizers.collisions.reassign import sinkhorn_reassign
from llmrec.tokenizers.collisions.suffix import add_suffix

PROPERTY = settings(derandomize=True, max_examples=25, deadline=None)
CODES = hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(0, 3))
MOVES_LAST = ("sinkhorn_reassign", "hungarian_leaf")


@st.composite
def ragged(draw) -> np.ndarray:
    """Codes of one to L levels, -1 beyond the end of each."""
    codes = draw(CODES).copy()
    lengths = draw(hnp.arrays(np.int64, len(codes), elements=st.integers(1, codes.shape[1])))
    codes[np.arange(codes.shape[1]) >= lengths[:, None]] = EMPTY
    return codes


def encoded(codes: np.ndarray, cost: np.ndarray | None = None) -> Encoded:
    """Codes of a tokenizer with four codes on the last level, and costs that are random where not given."""
    if cost is None:
        cost = np.random.default_rng(0).random((len(codes), 4))
    return Encoded(codes, lambda rows: torch.as_tensor(cost[rows], dtype=torch.float32))


def table_of(codes: np.ndarray, sizes: list[int]) -> SidTable:
    return SidTable([f"item-{row}" for row in range(len(codes))], codes, level_sizes=sizes)


@PROPERTY
@given(codes=ragged())
def test_buckets_are_those_of_unique_rows(codes):
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order, starts, found = buckets(codes)
    np.testing.assert_array_equal(order, np.argsort(inverse.reshape(-1), kind="stable"))
    np.testing.assert_array_equal(found, counts)
    np.testing.assert_array_equal(starts, np.cumsum(counts) - counts)


@PROPERTY
@given(codes=ragged())
def test_codes_too_large_for_one_integer_fall_into_the_same_buckets(codes):
    wide = np.tile(np.where(codes == EMPTY, EMPTY, codes * 2**40), 2)
    for one, other in zip(buckets(codes), buckets(wide), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ordinals_by_hand():
    ordinal, sharing = ordinals(np.array([[0, 1], [2, 2], [0, 1], [2, EMPTY], [0, 1]]))
    assert ordinal.tolist() == [0, 0, 1, 0, 2] and sharing.tolist() == [3, 1, 3, 1, 3]


def test_suffix_follows_item_rows_and_is_given_to_every_item():
    codes = np.array([[0, 1], [2, 2], [0, 1], [2, 0], [0, 1]])
    resolved, sizes, notes = resolve("suffix_ordinal", encoded(codes), [4, 4])
    assert resolved.tolist() == [[0, 1, 0], [2, 2, 0], [0, 1, 1], [2, 0, 0], [0, 1, 2]]
    assert sizes == [4, 4, 4] and notes == []


def test_suffix_if_collided_leaves_the_others_shorter():
    codes = np.array([[0, 1], [2, 2], [0, 1], [2, 0], [0, 1]])
    resolved, sizes, notes = resolve("suffix_if_collided", encoded(codes), [4, 4])
    assert resolved.tolist() == [[0, 1, 0], [2, 2, -1], [0, 1, 1], [2, 0, -1], [0, 1, 2]]
    assert sizes == [4, 4, 4] and notes == ["3 of 5 items share their codes and got a suffix."]
    table = table_of(resolved, sizes)  # all that share a prefix have the suffix: no terminal code is needed
    np.testing.assert_array_equal(table.all_codes, resolved)
    assert resolve("suffix_if_collided", encoded(codes[1:4]), [4, 4])[0].tolist() == [[2, 2], [0, 1], [2, 0]]


def test_suffix_level_grows_to_the_largest_bucket():
    resolved, sizes, notes = resolve("suffix_ordinal", encoded(np.zeros((6, 2), np.int64)), [4, 4])
    assert resolved[:, 2].tolist() == [0, 1, 2, 3, 4, 5]
    assert sizes == [4, 4, 6]
    assert notes == ["6 items share all codes, so the suffix level has 6 codes."]


def test_suffix_of_a_short_sid_stands_behind_the_codes_of_its_level():
    """Two items end at (3); as (3, 0) and (3, 1) they would be the third item and a brother of it."""
    codes = np.array([[3, -1], [3, -1], [3, 0], [2, -1], [2, 1]])
    resolved, sizes, _ = resolve("suffix_if_collided", encoded(codes), [4, 2])
    assert resolved.tolist() == [[3, 2], [3, 3], [3, 0], [2, -1], [2, 1]] and sizes == [4, 4]
    table = table_of(resolved, sizes)  # (2) is a prefix of (2, 1): the terminal code lies behind the suffixes
    assert table.codes([3]).tolist() == [[2, 4]] and table.level_sizes == [4, 5]
    everyone, sizes = add_suffix(codes, ordinals(codes)[0], [4, 2], 2)
    assert everyone.tolist() == [[3, 2, -1], [3, 3, -1], [3, 0, 0], [2, 2, -1], [2, 1, 0]] and sizes == [4, 4, 2]


@PROPERTY
@given(codes=ragged(), policy=st.sampled_from(["suffix_ordinal", "suffix_if_collided"]))
def test_a_suffix_makes_any_codes_distinct_and_keeps_them_as_prefix(codes, policy):
    resolved, sizes, _ = resolve(policy, encoded(codes), [4] * codes.shape[1])
    table = table_of(resolved, sizes)
    assert num_collisions(resolved) == 0 and table.bucket_sizes.max() == 1
    longer = resolved[:, : codes.shape[1]]
    np.testing.assert_array_equal(longer[codes != EMPTY], codes[codes != EMPTY])
    _, sharing = ordinals(codes)
    added = (resolved != EMPTY).sum(axis=1) - (codes != EMPTY).sum(axis=1)
    np.testing.assert_array_equal(added, np.where(sharing > 1, 1, policy == "suffix_ordinal"))
    assert (table.all_codes.max(axis=0) < table.level_sizes).all()


@PROPERTY
@given(codes=CODES, seed=st.integers(0, 99), policy=st.sampled_from(MOVES_LAST))
def test_last_codes_chosen_again_are_distinct_in_the_end_and_the_levels_before_stay(codes, seed, policy):
    levels = codes.shape[1]
    cost, sizes = np.random.default_rng(seed).random((len(codes), 4)), [4] * levels
    fullest = buckets(codes[:, :-1])[2].max()
    room = 4 if policy == "hungarian_leaf" else math.inf
    if fullest > room:
        with pytest.raises(ValueError, match=f"{fullest} items share the codes .* has room for {room} of"):
            resolve(policy, encoded(codes, cost), sizes)
        return
    resolved, new_sizes, _ = resolve(policy, encoded(codes, cost), sizes)
    assert num_collisions(resolved) == 0
    np.testing.assert_array_equal(resolved[:, : levels - 1], codes[:, :-1])
    assert (resolved.max(axis=0) < new_sizes).all()
    if policy == "hungarian_leaf":
        assert new_sizes == sizes


@PROPERTY
@given(codes=CODES, seed=st.integers(0, 99))
def test_sinkhorn_never_leaves_more_collisions(codes, seed):
    cost = np.random.default_rng(seed).random((len(codes), 4))
    assert num_collisions(sinkhorn_reassign(codes, encoded(codes, cost).last_level_cost)[0]) <= num_collisions(codes)


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


def test_hungarian_leaf_takes_the_least_sum_of_costs():
    """Each on its nearest code would cost 0 + 0; the first may go to 1 for 5, or the second for 2."""
    cost = np.array([[0.0, 5.0, 9.0, 9.0], [0.0, 2.0, 9.0, 9.0], [9.0, 9.0, 0.0, 9.0]])
    codes = np.array([[1, 0], [1, 0], [1, 2]])
    assert resolve("hungarian_leaf", encoded(codes, cost), [4, 4])[0].tolist() == [[1, 0], [1, 1], [1, 2]]


@PROPERTY
@given(seed=st.integers(0, 99), items=st.integers(2, 4))
def test_no_other_distinct_codes_cost_less_than_those_of_hungarian_leaf(seed, items):
    cost = np.random.default_rng(seed).random((items, 4)).astype(np.float32)
    resolved = resolve("hungarian_leaf", encoded(np.zeros((items, 1), np.int64), cost), [4])[0][:, 0]
    best = min(sum(cost[row, code] for row, code in enumerate(p)) for p in permutations(range(4), items))
    assert cost[np.arange(items), resolved].sum() == pytest.approx(best)


def test_cheapest_with_room_by_hand():
    cost = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert cheapest_with_room(cost, np.array([1, 0, 2])).tolist() == [0, 2, 2, -1]


def test_accept_changes_nothing():
    codes = np.array([[0, 1], [0, 1]])
    assert resolve("accept", encoded(codes), [4, 4]) == (codes, [4, 4], [])


@pytest.mark.parametrize("policy", MOVES_LAST)
def test_policies_that_move_last_codes_need_costs_and_one_length(policy):
    with pytest.raises(ValueError, match=f"collision '{policy}' needs to know how far items are from codes"):
        resolve(policy, Encoded(np.array([[0, 1], [0, 1]])), [4, 4])
    with pytest.raises(ValueError, match=f"'{policy}' chooses last codes again, .* end at different levels"):
        resolve(policy, encoded(np.array([[0, 1], [0, EMPTY]])), [4, 4])


def test_expected_collision_rate_of_the_formula():
    # Two items in four cells collide with probability 1/4: expected items less distinct codes 1/4, over two items.
    assert expected_collision_rate(2, [2, 2]) == pytest.approx(1 / 8)
    assert expected_collision_rate(24_600, [48] * 3) == pytest.approx(0.10, abs=0.005)
    assert expected_collision_rate(12_000, [256] * 3) == pytest.approx(0.0004, abs=0.0001)


@pytest.mark.parametrize("policy", ["accept", "sinkhorn_reassign", "hungarian_leaf"])
def test_more_items_than_codes_is_refused_where_no_suffix_is_promised(policy):
    with pytest.raises(ValueError, match=r"17 items .* 2 levels of 4 codes \(16 semantic IDs.*num_levels 3 or more"):
        check_capacity(policy, 17, [4, 4])
    check_capacity(policy, 16, [4, 4])


def test_suffixes_have_room_for_all():
    check_capacity("suffix_ordinal", 1000, [4, 4])
    check_capacity("suffix_if_collided", 1000, [4, 4])


def test_a_code_that_costs_infinitely_much_is_never_taken():
    """Two items of a parent with two of four codes: both stay in it, and apart."""
    inf = np.inf
    found = encoded(np.array([[0, 1], [0, 1]]), np.array([[2.0, 1.0, inf, inf], [3.0, 1.0, inf, inf]]))
    codes, sizes, _ = resolve("sinkhorn_reassign", found, [4, 4])
    assert sorted(codes[:, 1]) == [0, 1] and sizes == [4, 4]
