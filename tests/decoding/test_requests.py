"""Requests to the Recommender: every form of list that people have, and a sentence for everything else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from llmrec.decoding.requests import read_requests, whole_number

LIST = ["item-3", "item-1"]
ONE_LIST = {
    "list": LIST,
    "tuple": tuple(LIST),
    "array": np.array(LIST),
    "array of objects": np.array(LIST, dtype=object),
    "pandas": pd.Series(LIST),
    "pandas, other index": pd.Series(LIST, index=[7, 9]),
    "pandas categories": pd.Series(LIST, dtype="category"),
    "polars": pl.Series(LIST),
    "pyarrow": pa.array(LIST),
    "pyarrow chunks": pa.chunked_array([LIST[:1], LIST[1:]]),
    "dictionary": pa.array(LIST).dictionary_encode(),
}
SEVERAL_LISTS = {
    "lists": [LIST, LIST[:1]],
    "tuples": (tuple(LIST), tuple(LIST[:1])),
    "pandas": pd.Series([LIST, LIST[:1]]),
    "polars": pl.Series([LIST, LIST[:1]]),
    "pyarrow": pa.array([LIST, LIST[:1]]),
    "columns": [pl.Series(LIST), pd.Series(LIST[:1])],
}


def asked(table, histories, exclude="seen", allow=None, unknown="error"):
    return read_requests(table, histories, exclude, allow, unknown)


@pytest.mark.parametrize("given", ONE_LIST.values(), ids=ONE_LIST)
def test_a_list_may_be_of_any_library(sid_table, given):
    found = asked(sid_table, [given], allow=given, exclude=given)
    assert found.histories[0].tolist() == [3, 1] == found.allow[0].tolist()
    assert found.exclude[0].tolist() == [3, 1] == found.exclude_all.tolist()


@pytest.mark.parametrize("given", SEVERAL_LISTS.values(), ids=SEVERAL_LISTS)
def test_lists_of_lists_may_be_of_any_library(sid_table, given):
    found = asked(sid_table, given, exclude=given, allow=given)
    for lists in (found.histories, found.exclude, found.allow):
        assert [rows.tolist() for rows in lists] == [[3, 1], [3]]


def test_rows_of_a_table_of_ids_do_not_mix(sid_table):
    """Each row of a 2-d array is a new object, whose id() the next one may have again."""
    ids = np.array([["item-1", "item-2"], ["item-3", "item-4"], ["item-5", "item-6"]])
    found = asked(sid_table, ids, exclude=ids)
    assert [rows.tolist() for rows in found.exclude] == [[1, 2], [3, 4], [5, 6]]


def test_seen_items_and_a_list_for_all_are_barred_together(sid_table):
    """For each form of `exclude`, the rows that are barred for each user, and for all."""
    forms = {
        "seen": ([[1], [2, 2]], []), ("item-5",): ([[1], [2, 2]], [5]), (): ([[1], [2, 2]], []), None: ([[], []], []),
        (("item-5",), None): ([[5], []], []), frozenset({"item-5"}): ([[1], [2, 2]], [5]),
    }  # fmt: skip
    for given, expected in forms.items():
        found = asked(sid_table, [["item-1"], ["item-2", "item-2"]], given)
        assert ([rows.tolist() for rows in found.exclude], found.exclude_all.tolist()) == expected


def test_lists_given_once_are_converted_once(sid_table):
    found = asked(sid_table, [LIST] * 3, allow=["item-1"])
    assert found.allow[0] is found.allow[1] is found.allow[2]
    own = ["item-1"]
    found = asked(sid_table, [LIST] * 3, allow=[own, ["item-1"], own])
    assert found.allow[0] is found.allow[2] is not found.allow[1]


def test_unknown_items_are_left_out_if_told_so_and_named(sid_table):
    found = asked(sid_table, [["x", "item-1", "x"], ["y"]], ["z", "item-2"], [["v"], None], "skip")
    assert [rows.tolist() for rows in found.histories] == [[1], []] and found.unknown == [["x", "x"], ["y"]]
    assert [rows.tolist() for rows in found.exclude] == [[1], []] and found.exclude_all.tolist() == [2]
    assert found.unknown_filters == ["z", "v"]
    assert found.allow[0].tolist() == [] and found.allow[1] is None  # nothing is left of a restriction: no item


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"histories": None}, "histories is None; a list that has a history"),
        ({"histories": "item-1"}, "histories is 'item-1'; a list that has a history"),
        ({"histories": ["item-1", "item-2"]}, "history 0 is 'item-1'; a list of item_ids is needed"),
        ({"histories": {"user": ["item-1"]}}, r"histories is {'user': \['item-1'\]}; a list"),
        ({"histories": (["item-1"] for _ in range(2))}, "histories is a generator, which can be read only once"),
        ({"histories": [iter(["item-1"])]}, "history 0 is a list_iterator, which can be read only once"),
        ({"histories": [{"item-1"}]}, "history 0 is {'item-1'}; a list of item_ids is needed"),
        ({"histories": pd.DataFrame({"history": [["item-1"]]})}, "histories is a whole DataFrame; .* one column"),
        ({"histories": pl.DataFrame({"history": [["item-1"]]})}, "histories is a whole DataFrame"),
        ({"histories": pa.table({"history": [["item-1"]]})}, "histories is a whole Table"),
        ({"histories": [[["item-1"]]]}, r"history 0 holds \['item-1'\] \(list\) at place 0; a list within a list"),
        ({"histories": [["item-1", 7]]}, r"history 0 holds 7 \(int\) at place 1; item_ids are text, such as '7'"),
        ({"histories": [np.array([3, 4])]}, r"history 0 holds .*3.* \(int64\) at place 0; item_ids are text"),
        ({"histories": [["item-1", None]]}, "history 0 holds None"),
        ({"histories": [pd.Series(["item-1", None])]}, "history 0 holds nan"),
        ({"histories": [[b"item-1"]]}, "history 0 holds b'item-1'"),
        ({"histories": [torch.tensor([1])]}, "history 0 holds tensor"),
        ({"histories": np.array("item-1")}, "histories is array"),
        ({"histories": [["\u2028\x1b[2J"]]}, r"history 0 names .*\\u2028\\x1b\[2J"),
        ({"histories": [["item-1"]], "exclude": ["item-1", None]}, "exclude needs one list .* a list of 2"),
        ({"histories": [["item-1"]] * 2, "allow": {("item-1",), ("item-2",)}}, "allow needs one list .* a set of 2"),
        ({"histories": [["item-1"]], "exclude": 5}, "exclude is 5; one list of item_ids for all users"),
        ({"histories": [["item-1"]], "exclude": ["seen", "item-1"]}, r"exclude names items .* \['seen'\]"),
        ({"histories": [["item-1"]], "unknown": "drop"}, "unknown is 'drop'; choose error or skip"),
        ({"histories": [["item-1"]], "unknown": True}, "unknown is True; choose error or skip"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_with_a_sentence(sid_table, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        asked(sid_table, **arguments)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)], ids=str)
def test_whole_numbers_of_any_library_count(value):
    assert whole_number("k", value, 1) == 3


@pytest.mark.parametrize(
    "value", [3.0, True, np.True_, "3", None, [3], float("nan"), np.float64(3), torch.tensor(3.0)], ids=str
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"k is .* whole number of at least 1 is needed\."):
        whole_number("k", value, 1)
