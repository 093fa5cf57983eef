"""Unknown items: what is kept, dropped and counted follows from the rows of the log and the list of items."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.configs import PrepareConfig
from llmrec.data.filters.keep import keep
from llmrec.data.public_formats import Dataset, compose_text

ITEMS = [f"p{number}" for number in range(6)]
rows = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ITEMS)), min_size=1, max_size=30)


def dataset(log: list[tuple[str, str]], listed: set[str]) -> Dataset:
    """Rows (user, item) in the order of time, and the items that are listed, each with a title."""
    items = pl.DataFrame({"item_id": sorted(listed), "title": [f"Title of {item}" for item in sorted(listed)]})
    users, named = zip(*log, strict=True)
    columns = {"user_id": users, "item_id": named, "timestamp": range(len(log)), "weight": [1.0] * len(log)}
    return Dataset(compose_text(items), pl.DataFrame(columns))


def config(unknown_items: str) -> PrepareConfig:
    files = {"interactions": "log.csv", "items": "items.csv"}
    return PrepareConfig(**files, out="x", k_core=0, unknown_items=unknown_items)


@given(rows, st.sets(st.sampled_from(ITEMS), min_size=1))
def test_kept_items_join_the_catalogue_without_fields(log, listed):
    unknown = {item for _, item in log} - listed
    found, interactions, report = keep(config("keep"), dataset(log, listed))
    assert interactions.height == len(log)
    titles = dict(found.items.select("item_id", "title").iter_rows())
    assert titles == {item: f"Title of {item}" for item in listed} | dict.fromkeys(unknown)
    texts = dict(found.items.select("item_id", "text").iter_rows())
    assert {item for item, text in texts.items() if text == ""} == unknown
    counted = {"items": len(unknown), "interactions": sum(item in unknown for _, item in log)}
    assert report["unknown_items"] == counted | {"dropped": False, "look_alike": None}
    names = [step["name"] for step in report["steps"]]
    assert names == (["read", f"{len(unknown)} unknown items kept"] if unknown else ["read"])
    assert len(found.notes) == bool(unknown)


@given(rows, st.sets(st.sampled_from(ITEMS), min_size=1))
def test_dropped_items_leave_what_the_log_is_without_them(log, listed):
    without = [row for row in log if row[1] in listed]
    if not without:
        with pytest.raises(ValueError, match=f"{len(log)} of {len(log)} interactions .*Nothing is left"):
            keep(config("drop"), dataset(log, listed))
        return
    found, interactions, report = keep(config("drop"), dataset(log, listed))
    expected = [(user, item) for user in "abc" for name, item in without if name == user]
    assert interactions.select("user_id", "item_id").rows() == expected
    assert found.items.equals(dataset(log, listed).items)
    unknown = {item for _, item in log} - listed
    counts = (report["unknown_items"][name] for name in ("items", "interactions", "dropped"))
    assert tuple(counts) == (len(unknown), len(log) - len(without), bool(unknown))
    if unknown:
        users, items = (len({row[column] for row in without}) for column in range(2))
        assert tuple(report["steps"][1].values()) == (
            f"{len(unknown)} unknown items dropped", users, items, len(without)
        )  # fmt: skip


def test_items_that_no_file_lists_are_left_as_published_by_default():
    found, interactions, report = keep(config("error"), dataset([("a", "p0"), ("a", "p1")], {"p0"}))
    assert interactions.height == 2 and found.items["item_id"].to_list() == ["p0"]
    assert report["unknown_items"]["items"] == 0 and found.notes == ()
