"""TableRecommender: the answers of a Recommender, for tables of any writer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec import TableRecommender
from llmrec.configs import RecommendConfig
from llmrec.data.item_ids import ItemIds
from llmrec.data.requests.id_lists import IdLists, is_id_list

IDS = [f"item-{row}" for row in range(12)]
PAGE = (Path(__file__).parents[3] / "docs" / "batch.md").read_text(encoding="utf-8")
HISTORIES = [["item-3"], ["item-8", "item-9", "item-10", "item-11"], [], ["item-1", "item-2"], ["item-7"] * 20]


@pytest.fixture(scope="module")
def recommend(tuned):
    return TableRecommender(RecommendConfig(model=str(tuned), k=5, device="cpu", batch_size=2))


def items_of(table: pa.Table) -> list[list[str]]:
    return [[item["item_id"] for item in items] for items in table["items"].to_pylist()]


def test_answers_are_those_of_the_recommender_in_the_order_of_the_users(recommend):
    answers = recommend(pa.table({"user": [5, 4, 3, 2, 1], "history": HISTORIES}))
    expected = recommend.recommender.recommend(HISTORIES, k=5)
    assert answers["user"].to_pylist() == [5, 4, 3, 2, 1] and answers["history"].to_pylist() == HISTORIES
    assert items_of(answers) == expected.item_ids
    scores = [[item["score"] for item in items] for items in answers["items"].to_pylist()]
    for ours, theirs in zip(scores, expected.scores, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert answers["fallback"].to_pylist() == [None, None, "popularity", None, None]
    assert answers["unknown"].to_pylist() == [[]] * 5


def test_a_part_of_a_table_gets_the_answers_of_the_whole(recommend):
    users = pa.table({"history": HISTORIES})
    chunked = pa.concat_tables([users.slice(0, 2), users.slice(2)])
    assert recommend(chunked).equals(recommend(users))
    assert items_of(recommend(users.slice(3))) == items_of(recommend(users))[3:]
    assert recommend(users.slice(0, 0)).schema.equals(recommend(users).schema)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.string_view()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
    ids=str,
)
def test_lists_of_every_writer_are_read(recommend, kind):
    histories = [["item-1", "item-2"], None, ["item-4", "item-3"]]
    expected = recommend(pa.table({"history": histories}))
    assert recommend(pa.table({"history": pa.array(histories, kind)})).equals(expected)


def test_frames_of_pandas_and_polars_are_read(recommend):
    expected = recommend(pa.table({"history": HISTORIES}))
    arrays = pd.DataFrame({"history": [np.array(ids, dtype=object) for ids in HISTORIES]})  # as Spark gives them
    assert items_of(recommend(pa.Table.from_pandas(arrays))) == items_of(expected)
    assert items_of(recommend(pl.DataFrame({"history": HISTORIES}).to_arrow())) == items_of(expected)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"history": [["item-1"]]}, "is a dict; a pyarrow.Table is needed"),
        (pa.table({"user_id": [1]}), 'needs {"history": [...]}'),
        (pa.table({"history": [["item-1"]], "excluded": [["item-2"]]}), 'has "excluded"; write "exclude"'),
        (pa.table({"history": [["item-1"]], "items": [1]}), 'has "items", a key of the answers'),
        (pa.table([[["item-1"]], [1], [2]], ["history", "n", "n"]), "has two columns 'n'"),
        (pa.table({"history": [[1.5]]}), 'has "history" of type list<item: double>; a list of item_ids'),
        (pa.table({"history": ["item-1"]}), 'has "history" of type string'),
        (pa.table({"history": [[True]]}), "of type list<item: bool>"),
        (pa.table({"history": [[["item-1"]]]}), "of type list<item: list<item: string>>"),
        (pa.table({"history": [["item-1"], ["item-2", None]]}), 'row 2, "history" has a null'),
        (pa.table({"history": [["item-1"], ["x", "item-2", "y"]]}), "row 2, \"history\" names items that this checkpo"),
        (pa.table({"history": [["item-1"]], "allow": [[7]]}), "row 1, \"allow\" names items that this checkpoint does"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_tables_that_are_no_requests_are_refused(recommend, users, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recommend(users)


def test_an_option_that_leaves_nothing_is_refused(tuned):
    with pytest.raises(ValueError, match="--exclude names all items"):
        TableRecommender(RecommendConfig(model=str(tuned), exclude=IDS, device="cpu"))


def test_the_function_for_spark_answers_frames_of_pandas(tuned, recommend):
    """The block of the page, without Spark: an iterator of frames in, an iterator of frames out."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "frames" in block)
    names: dict = {}
    exec(
        compile(block.replace('"run/checkpoint", k=10', f'{str(tuned)!r}, k=5, device="cpu"'), "batch.md", "exec"),
        names,
    )
    frames = [
        pd.DataFrame({"user_id": [1, 2], "history": HISTORIES[:2]}),
        pd.DataFrame({"user_id": [3], "history": [["?"]]}),
    ]
    one, two = names["answers"](iter(frames))
    assert [[item["item_id"] for item in items] for items in one["items"]] == items_of(
        recommend(pa.table({"history": HISTORIES[:2]}))
    )
    assert list(two["unknown"][0]) == ["?"] and two["fallback"][0] == "popularity"
    assert list(one) == [field.split()[0] for field in re.sub("<.*?>+", "", names["COLUMNS"]).split(", ")]


ENTRY = st.none() | st.sampled_from(["a", "b", "c", "?"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.none() | st.lists(ENTRY, max_size=4), max_size=4), min_size=1, max_size=3), st.data())
def test_lists_become_the_rows_of_a_loop(chunks, data):
    row_of = ItemIds(["b", "1", "c", "3", "4", "a"]).row_of
    arrays = [pa.array(chunk, pa.list_(pa.string())) for chunk in chunks]
    starts = [data.draw(st.integers(0, len(chunk))) for chunk in chunks]
    column = pa.chunked_array([array.slice(start) for array, start in zip(arrays, starts, strict=True)])
    lists = IdLists.of(column, row_of)
    given_lists = [entry for chunk, start in zip(chunks, starts, strict=True) for entry in chunk[start:]]
    texts = [entry or [] for entry in given_lists]
    assert [rows.tolist() for rows in lists.known] == [[row_of[i] for i in ids if i in row_of] for ids in texts]
    assert lists.unknown.to_pylist() == [[i for i in ids if i not in row_of] for ids in texts]
    assert lists.is_given.tolist() == [entry is not None for entry in given_lists]
    assert lists.num_known.tolist() == [len(rows) for rows in lists.known]
    assert lists.with_null.tolist() == [place for place, ids in enumerate(texts) if None in ids]


def test_types_that_hold_no_item_ids():
    kinds = [pa.string(), pa.list_(pa.float32()), pa.list_view(pa.string()), pa.map_(pa.string(), pa.string())]
    assert not any(map(is_id_list, kinds))
    assert is_id_list(pa.null()) and is_id_list(pa.list_(pa.null())) and is_id_list(pa.list_(pa.uint8()))
