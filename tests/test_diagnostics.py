"""Diagnostics: numbers worked out by hand, and the identity of prefix-conditional entropies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec.collisions import suffix_ordinal
from llmrec.diagnostics import collision_report, entropy_bits, level_report
from llmrec.sid import SidTable


def test_collisions_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 0], [1, 1], [1, 2], [1, 2], [2, 0], [3, 0]])  # 5 distinct, 5 items share
    assert collision_report(codes) == {"collision_rate": 3 / 8, "shared_items": 5 / 8, "max_bucket": 3}


def test_fixture_has_its_one_collision(sid_table):
    report = collision_report(sid_table.codes(range(12)))
    assert report == {"collision_rate": pytest.approx(1 / 12), "shared_items": 2 / 12, "max_bucket": 2}


def test_levels_by_hand():
    # Level 0: codes 0 0 1 1 of four, one bit. Level 1 given level 0: one bit under 0, none under 1; half a bit.
    table = SidTable(list("abcd"), np.array([[0, 0], [0, 1], [1, 1], [1, 1]]), level_sizes=[4, 2])
    first, second = level_report(table)
    assert (first["used"], first["usage"], first["entropy_bits"], first["perplexity_share"]) == (2, 0.5, 1.0, 0.5)
    assert first["conditional_entropy_bits"] == 1.0
    assert second["conditional_entropy_bits"] == pytest.approx(0.5)
    assert second["entropy_bits"] == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))


def test_the_end_of_a_shorter_sid_is_no_code():
    table = SidTable(list("abc"), np.array([[0, 0], [0, 1], [1, -1]]), level_sizes=[2, 2])
    second = level_report(table)[1]
    assert (second["used"], second["entropy_bits"]) == (2, 1.0)
    assert sum(level["conditional_entropy_bits"] for level in level_report(table)) == pytest.approx(np.log2(3))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(codes=hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(0, 3)))
def test_conditional_entropies_of_distinct_sids_add_up_to_log2_of_the_items(codes):
    distinct, size = suffix_ordinal(codes, 4)
    table = SidTable([str(row) for row in range(len(codes))], distinct, level_sizes=[4] * codes.shape[1] + [size])
    levels = level_report(table)
    total = sum(level["conditional_entropy_bits"] for level in levels)
    assert total == pytest.approx(np.log2(len(codes)), abs=1e-9)
    assert all(-1e-9 <= level["conditional_entropy_bits"] <= level["entropy_bits"] + 1e-9 for level in levels)


def test_entropy_of_one_code_is_zero():
    assert entropy_bits(np.array([0, 7, 0])) == 0
