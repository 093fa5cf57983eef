"""Histories, popularity, repeats, fields and splits: counted by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.data.report.behaviour import behaviour_facts, coded, history_facts, popularity_facts
from llmrec.data.report.fields import field_facts
from llmrec.data.report.held_out import split_facts
from llmrec.data.split import in_order


def log(rows) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return in_order(pl.DataFrame(rows, schema=schema, orient="row"))


def test_repeat_consumption_counts_returns_at_other_times():
    rows = [("u", item, time) for time, item in enumerate("aabca")] + [("v", "a", 0), ("v", "b", 1)]
    facts = behaviour_facts(coded(log(rows)))
    assert (facts["users"], facts["items"], facts["interactions"]) == (2, 3, 7)
    assert facts["repeats"] == {"rows": 2, "share": pytest.approx(2 / 7), "users": 0.5}


def test_histories():
    facts = history_facts(np.array([1, 2, 3, 4, 30]))
    assert (facts["least"], facts["median"], facts["most"], facts["mean"]) == (1, 3, 30, 8)
    assert facts["share_of_longest"] == 0.75
    assert facts["bins"] == [
        {"name": "1", "users": 1},
        {"name": "2", "users": 1},
        {"name": "3-4", "users": 2},
        {"name": "5-9", "users": 0},
        {"name": "10-19", "users": 0},
        {"name": "20-49", "users": 1},
    ]
    assert history_facts(np.array([5000]))["bins"] == [{"name": "1000+", "users": 1}]


def test_popularity():
    even, one = popularity_facts(np.full(10, 3)), popularity_facts(np.array([91, *[1] * 9]))
    assert even["gini"] == pytest.approx(0) and even["top_10"] == pytest.approx(0.1) and even["once"] == 0
    assert one["top_1"] == one["top_10"] == 0.91 and one["once"] == 9
    for facts in (even, one):
        curve = facts["curve"]
        assert (curve["items"][0], curve["interactions"][0]) == (0, 0)
        assert (curve["items"][-1], curve["interactions"][-1]) == (1, 1)
        assert all(x <= y + 1e-9 for x, y in zip(curve["items"], curve["interactions"], strict=True))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcd"), st.integers(0, 4)), min_size=1))
def test_repeats_by_two_routes(rows):
    seen, again = set(), {}
    for user, item, _ in rows:
        again[user] = again.get(user, 0) + ((user, item) in seen)
        seen.add((user, item))
    facts = behaviour_facts(coded(log(rows)))
    assert facts["repeats"]["rows"] == sum(again.values())
    assert facts["repeats"]["users"] == pytest.approx(np.mean([count > 0 for count in again.values()]))


def test_fields_that_say_nothing_are_missing():
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["Saw", None, " ", "Saw"],
            "text": ["Saw", "", "x", "Saw"],
            "genres": [["x"], [], [None], None],
            "price": [1.0, float("nan"), None, 2.0],
            "about": [{"by": "x"}, {"by": "y"}, None, {"by": "x"}],
        },
        strict=False,
    )
    facts = field_facts(items)
    assert {column["name"]: column["missing"] for column in facts["columns"]} == {
        "title": 2, "text": 1, "genres": 3, "price": 2, "about": 1,
    }  # fmt: skip
    assert (facts["items"], facts["no_title"], facts["no_text"], facts["same_title"]) == (4, 2, 1, 2)


def test_empty_text_is_no_value():
    (column,) = field_facts(pl.DataFrame({"item_id": ["a", "b", "c"], "text": ["", " ", "x"]}))["columns"]
    assert column == {"name": "text", "missing": 2, "different": 1}


def test_splits_tell_cold_targets_and_returns(catalog):
    facts = split_facts(catalog)
    train = {row for sequence in catalog.train.sequences() for row in sequence.tolist()}
    assert facts["train"] == {"examples": 6, "users": 6}
    for name in ("valid", "test"):
        examples = catalog.examples(name)
        targets = examples.targets.tolist()
        assert facts[name]["cold"] == pytest.approx(np.mean([target not in train for target in targets]))
        returns = [target in examples.history(i).tolist() for i, target in enumerate(targets)]
        assert facts[name]["in_history"] == pytest.approx(np.mean(returns))
        assert facts[name]["last_again"] == 0


def test_a_target_that_repeats_the_last_item_is_counted():
    items = pa.table({"item_id": ["a", "b"], "title": ["A", "B"]})
    rows = [("u", "train", [], "a"), ("u", "valid", ["a"], "b"), ("u", "test", ["a", "b"], "b"), ("v", "test", [], "a")]
    split = pa.Table.from_pylist(
        [dict(zip(("user_id", "split", "history", "target"), row, strict=True)) for row in rows]
    )
    facts = split_facts(Catalog(items, split))
    assert (facts["valid"]["last_again"], facts["test"]["last_again"]) == (0, 0.5)
