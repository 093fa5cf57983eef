"""Validation examples of a trained view come out of training, and no item loses its only interaction."""

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


def test_the_only_sequence_that_can_give_an_item_by_hand():
    # Too short; a repeat of its own; item 9 is the end everywhere; item 1 is new to its user and known from the first.
    catalog = catalog_of([[0, 1, 2, 0], [0, 1], [3, 4, 3], [5, 6, 9], [5, 6, 7, 1]])
    inner = hold_out(catalog, seed=0)
    assert [s.tolist() for s in inner.train.sequences()] == [[0, 1, 2, 0], [0, 1], [3, 4, 3], [5, 6, 9], [5, 6, 7]]
    assert inner.train.user_ids == catalog.train.user_ids
    held_out = inner.examples("valid")
    assert (held_out.user_ids, held_out.history(0).tolist(), held_out.targets.tolist()) == (["u4"], [5, 6, 7], [1])
    assert len(inner.examples("test")) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=7), min_size=1, max_size=30), st.integers(0, 99))
def test_held_out_and_trained_items_are_the_training_sequences_and_no_item_is_lost(train, seed):
    catalog = catalog_of(train)
    try:
        inner = hold_out(catalog, seed)
    except ValueError:
        assume(False)
    held_out, row_of = inner.examples("valid"), {user: row for row, user in enumerate(inner.train.user_ids)}
    restored = [sequence.tolist() for sequence in inner.train.sequences()]
    for i, user in enumerate(held_out.user_ids):
        assert held_out.history(i).tolist() == restored[row_of[user]] and len(restored[row_of[user]]) >= 2
        assert held_out.targets[i] not in restored[row_of[user]]
        restored[row_of[user]].append(int(held_out.targets[i]))
    assert restored == train
    np.testing.assert_array_equal(inner.training_counts > 0, catalog.training_counts > 0)


@pytest.mark.parametrize(("able", "count"), [(1, 1), (5, 2), (40, 20), (1000, 200), (2400, 240)])
def test_the_number_of_held_out_items(able, count):
    train = [[user % 9, 9, 10] for user in range(able)]
    inner = hold_out(catalog_of([*train, [10, 0]]), 0)  # too short to give one, and keeps item 10 known
    assert len(inner.examples("valid")) == count


def test_a_history_has_the_latest_items_before_the_held_out_one():
    inner = hold_out(catalog_of([list(range(99)), [98, 0]], 99), 0)
    assert inner.examples("valid").history(0).tolist() == list(range(98))[-MAX_HISTORY:]


@pytest.mark.parametrize("train", [[], [[0], [1, 0]], [[0, 1, 2], [3, 4, 5]]])
def test_no_sequence_that_can_give_an_item_is_an_error(train):
    with pytest.raises(ValueError, match=rf"None of the {len(train)} training sequences .* leave them out of `views`"):
        hold_out(catalog_of(train), 0)
