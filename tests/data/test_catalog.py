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


ITEMS = {"item_id": ["a", "b"], "title": ["Saw", None]}
SPLIT = {"user_id": ["u"], "split": ["test"], "history": [["a"]], "target": ["b"]}
WRONG = {
    "item_ids that are fractions": (
        {"item_id": [1.0, 2.0]},
        {},
        "items.parquet has columns of other .*item_id is double",
    ),
    "titles that are numbers": ({"title": [1, 2]}, {}, "items.parquet has columns of other types .*title is int64"),
    "a history that is a time": (
        {},
        {"history": pa.array([5], pa.timestamp("us"))},
        "split.parquet has .*history is time",
    ),
    "a history of numbers with fractions": ({}, {"history": [[1.5]]}, r"split.parquet has .*history is list<.*double>"),
    "a history that is empty": (
        {},
        {"history": pa.array([None], pa.list_(pa.string()))},
        r"empty cells in \['history'\]",
    ),
    "a user that is empty": ({}, {"user_id": pa.array([None], pa.string())}, r"empty cells in \['user_id'\]"),
    "a target that is a list": ({}, {"target": [["b"]]}, "split.parquet has columns of other types .*target is list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_columns_of_other_types_are_refused(case):
    """Each would be read as other ids, or end in a traceback of pyarrow."""
    items, split, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Catalog(pa.table(ITEMS | items), pa.table(SPLIT | split))


def test_a_column_that_stands_twice_is_refused():
    twice = pa.table([["a"], ["b"], ["Saw"]], names=["item_id", "item_id", "title"])
    with pytest.raises(ValueError, match=r"has the columns \['item_id'\] more than once"):
        Catalog(twice, pa.table(SPLIT))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_any_arrow_type_is_read(kind):
    items = pa.table({name: pa.array(values, pa.string()).cast(kind) for name, values in ITEMS.items()})
    assert Catalog(items, pa.table(SPLIT)).item_ids == ["a", "b"]
