"""The rows that judge a trained view come out of training, and cost no item its place in it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.views.hold_out import MAX_HISTORY, hold_out
from tests.views.test_views import split_table


def catalog_of(train: list[list[int]], num_items: int = 12, **held_out: list[list[int]]) -> Catalog:
    ids = [f"item-{row}" for row in range(num_items)]
    named = {name: [[ids[row] for row in s] for s in rows] for name, rows in {"train": train, **held_out}.items()}
    return Catalog(pa.table({"item_id": ids, "title": ids}), split_table(**named))


def without_held_out(train: list[list[int]]) -> Catalog:
    """A catalogue whose valid and test rows nobody may even read."""
    catalog = catalog_of(train, valid=[[0, 1]], test=[[0, 1]])
    examples = catalog.examples

    def guarded(split: str):
        assert split == "train", f"law 1: {split} examples were read"
        return examples(split)

    catalog.examples = guarded
    return catalog


def test_the_only_sequence_that_may_judge_by_hand():
    # Too short; a repeat of its own; item 9 is the end everywhere; item 1 is new to its user and known from the first.
    catalog = catalog_of([[0, 1, 2, 0], [0, 1], [3, 4, 3], [5, 6, 9], [5, 6, 7, 1]])
    inner = hold_out(catalog, seed=0)
    assert [s.tolist() for s in inner.train.sequences()] == [[0, 1, 2, 0], [0, 1], [3, 4, 3], [5, 6, 9], [5, 6, 7]]
    assert inner.train.user_ids == catalog.train.user_ids
    judges = inner.examples("valid")
    assert (judges.user_ids, judges.history(0).tolist(), judges.targets.tolist()) == (["u4"], [5, 6, 7], [1])
    assert len(inner.examples("test")) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=7), min_size=1, max_size=30), st.integers(0, 99))
def test_what_is_judged_and_what_is_trained_are_the_training_rows_and_no_item_is_lost(train, seed):
    catalog = catalog_of(train)
    try:
        inner = hold_out(catalog, seed)
    except ValueError:
        assume(False)
    judges, row_of = inner.examples("valid"), {user: row for row, user in enumerate(inner.train.user_ids)}
    restored = [sequence.tolist() for sequence in inner.train.sequences()]
    for i, user in enumerate(judges.user_ids):
        assert judges.history(i).tolist() == restored[row_of[user]] and len(restored[row_of[user]]) >= 2
        assert judges.targets[i] not in restored[row_of[user]]
        restored[row_of[user]].append(int(judges.targets[i]))
    assert restored == train
    np.testing.assert_array_equal(inner.training_counts > 0, catalog.training_counts > 0)


@pytest.mark.parametrize(("able", "judges"), [(1, 1), (5, 2), (40, 20), (1000, 200), (2400, 240)])
def test_how_many_judge(able, judges):
    train = [[user % 9, 9, 10] for user in range(able)]
    inner = hold_out(catalog_of([*train, [10, 0]]), 0)  # too short to judge, and keeps item 10 known
    assert len(inner.examples("valid")) == judges


def test_a_judge_reads_the_latest_items_before():
    inner = hold_out(catalog_of([list(range(99)), [98, 0]], 99), 0)
    assert inner.examples("valid").history(0).tolist() == list(range(98))[-MAX_HISTORY:]


@pytest.mark.parametrize("train", [[], [[0], [1, 0]], [[0, 1, 2], [3, 4, 5]]])
def test_no_sequence_that_may_judge_is_an_error(train):
    with pytest.raises(ValueError, match=rf"None of the {len(train)} training sequences .* leave them out of `views`"):
        hold_out(catalog_of(train), 0)
