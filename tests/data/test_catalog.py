"""Catalog: item ids resolved to item rows, and what it refuses."""

import numpy as np
import pyarrow as pa
import pytest

from llmrec.data.catalog import Catalog


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "repeats item_id 'a'; every item needs one row"),
        (["a", None, "b"], "has an empty item_id in item row 1; every item needs one"),
        (["a", "b", ""], "has an empty item_id in item row 2"),
    ],
)
def test_item_ids_that_name_no_single_item_are_refused(catalog, ids, message):
    with pytest.raises(ValueError, match=message):
        Catalog(pa.table({"item_id": ids, "title": ids}), catalog._split)


def test_rows_hold_item_rows_in_the_order_of_the_items(catalog):
    reverse = Catalog(catalog.items.take(np.arange(12)[::-1].copy()), catalog._split)
    for split in ("train", "valid", "test"):
        rows, reversed_rows = catalog.examples(split), reverse.examples(split)
        np.testing.assert_array_equal(11 - rows.values, reversed_rows.values)
        np.testing.assert_array_equal(11 - rows.targets, reversed_rows.targets)
    assert catalog.examples("test").sequence(1).tolist() == [1, 3, 5, 7, 9]


def test_rows_of_a_split_without_any_and_of_none(catalog):
    train_only = Catalog(catalog.items, catalog._split.slice(0, 1))
    assert len(train_only.examples("test")) == 0 and train_only.examples("test").sequences() == []
    with pytest.raises(ValueError, match="Unknown split 'held-out'; choose from train, valid, test"):
        catalog.examples("held-out")


def test_unknown_items_are_named(catalog):
    with pytest.raises(ValueError, match=r"2 item ids are not in catalog/items.parquet; first: \['x', 'y'\]"):
        catalog.item_rows(["item-1", "x", "y"])
