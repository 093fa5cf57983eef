"""Conditions on columns: equal to a Python loop over the rows, and what cannot be read is refused with the remedy."""

from __future__ import annotations

import decimal
import operator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.data.conditions import matches

ITEMS = {
    "title": ["Red apple", "a RED pear", None, "blue, plum", ""],
    "category": ["Books", "Music", "Books", None, "Art, Craft"],
    "price": [20.0, 9.5, None, float("nan"), -3.0],
    "list price": ["20", "9.50", None, " ", "-3e0"],  # as a CSV file holds it
    "year": [1990, 2000, 2010, None, 2**60 + 1],
    "in stock": [True, False, None, True, False],
    "genres": [["Drama"], ["Drama", "Sci-Fi"], [], None, ["drama", None]],
    "codes": [[1, 2], [3], None, [], [2]],
}


def rows(*conditions: str) -> list[int]:
    return np.flatnonzero(matches(pa.table(ITEMS), conditions)).tolist()


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("price <= 9.5", [1, 4]),
        ("price<20", [1, 4]),
        ("price > -3", [0, 1]),
        ("price != 20", [1, 4]),  # neither null nor NaN
        ("price in 20, -3", [0, 4]),
        ("year == 1152921504606846977", [4]),  # its neighbour is the same float64
        ("year >= 1999.5", [1, 2, 4]),
        ("year < 99999999999999999999", [0, 1, 2, 4]),
        ("list price <= 9.5", [1, 4]),
        ("list price == 9.5", []),  # text is compared as it is written
        ("list price == 9.50", [1]),
        ("title contains red", [0, 1]),
        ('title contains ", p"', [3]),
        ("category == Books", [0, 2]),
        ("category == books", []),
        ("category != Books", [1, 4]),
        ("category in Books,Music", [0, 1, 2]),
        ('category in Music, "Art, Craft"', [1, 4]),
        ("in stock == true", [0, 3]),
        ("in stock != True", [1, 4]),
        ("genres contains Drama", [0, 1]),
        ("genres in Sci-Fi, drama", [1, 4]),
        ("codes contains 2", [0, 4]),
        ("codes in 3, 1", [0, 1]),
    ],
)
def test_a_condition(condition, met):
    assert rows(condition) == met


def test_all_conditions_hold_and_none_is_no_condition():
    assert rows("category == Books", "year > 1995") == [2]
    assert rows() == [0, 1, 2, 3, 4]


def test_the_longest_name_is_the_column():
    table = pa.table({"made": ["x"], "made in": ["Peru"]})
    assert matches(table, ["made in == Peru"]).tolist() == [True]


@pytest.mark.parametrize("dtype", [pa.int8(), pa.uint8(), pa.uint64(), pa.float32(), pa.decimal128(5, 2)], ids=str)
def test_every_type_of_numbers_is_compared(dtype):
    cells = [decimal.Decimal(value) for value in (1, 2, 3)] if pa.types.is_decimal(dtype) else [1, 2, 3]
    table = pa.table({"n": pa.array(cells, dtype)})
    for condition, met in {"n > 1.5": [2, 3], "n != 2": [1, 3], "n > -1": [1, 2, 3], "n < 1e30": [1, 2, 3]}.items():
        assert [n for n, is_met in zip((1, 2, 3), matches(table, [condition]), strict=True) if is_met] == met


def test_a_float32_equals_the_number_that_it_was_written_as():
    assert matches(pa.table({"n": pa.array([0.1], pa.float32())}), ["n == 0.1", "n <= 0.1"]).tolist() == [True]


def test_categories_and_chunks():
    """polars writes a Categorical as a dictionary, and a large file is read in chunks."""
    table = pa.table({"c": pa.array(["a", None, "b"]).dictionary_encode(), "l": [["x"], None, ["y", "x"]]})
    table = pa.concat_tables([table, table])
    assert matches(table, ["c != a"]).tolist() == [False, False, True] * 2
    assert matches(table, ["l contains x"]).tolist() == [True, False, True] * 2


NUMBERS = st.none() | st.integers(-3, 3) | st.floats(-3, 3, width=16)
WORDS = st.text("abA ", min_size=1, max_size=3).map(str.strip).filter(bool)
COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
           ">=": operator.ge}  # fmt: skip


@given(
    st.lists(st.tuples(NUMBERS, st.none() | WORDS, st.none() | st.lists(WORDS, max_size=3)), min_size=1, max_size=8),
    st.sampled_from([*COMPARE]),
    st.integers(-3, 3) | st.floats(-3, 3, width=16),
    st.lists(WORDS, min_size=1, max_size=3),
)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_conditions_equal_a_loop_over_the_rows(items, symbol, number, words):
    numbers, texts, lists = map(list, zip(*items, strict=True))
    table = pa.table({
        "n": pa.array([None if n is None else float(n) for n in numbers], pa.float64()),
        "written": pa.array([None if n is None else repr(n) for n in numbers], pa.string()),
        "t": pa.array(texts, pa.large_string()),
        "l": pa.array(lists, pa.large_list(pa.string())),
    })  # fmt: skip
    compare, among = COMPARE[symbol], ", ".join(words)
    expected = {
        f"n {symbol} {number!r}": [n is not None and compare(n, number) for n in numbers],
        f"t contains {words[0]}": [t is not None and words[0].lower() in t.lower() for t in texts],
        f"t in {among}": [t in words for t in texts],
        f"t != {words[0]}": [t is not None and t != words[0] for t in texts],
        f"l contains {words[0]}": [words[0] in (found or []) for found in lists],
        f"l in {among}": [not set(words).isdisjoint(found or []) for found in lists],
    }
    if symbol not in ("==", "!="):
        expected[f"written{symbol}{number!r}"] = expected[f"n {symbol} {number!r}"]
    for condition, met in expected.items():
        assert matches(table, [condition]).tolist() == met, condition
    both = [a and b for a, b in zip(*list(expected.values())[:2], strict=True)]
    assert matches(table, list(expected)[:2]).tolist() == both


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prise <= 20", "condition 'prise <= 20': unknown column 'prise'; did you mean 'price'"),
        ("zzz == 1", "unknown column 'zzz'; the columns are title, category, price"),
        ("", "condition '': unknown column ''"),
        ("price", "no operator after 'price'; choose from == != < <= > >= in contains, .* as one text"),
        ("price =< 20", "unknown operator '=<'; choose from =="),
        ("price = 20", "unknown operator '='; choose from =="),
        ("price between 1, 2", "unknown operator 'between'"),
        ("category not in Books", "unknown operator 'not'"),
        ("price <=", "no value after '<='"),
        ("price <= cheap", "'price' holds numbers, and 'cheap' is none"),
        ("price <= nan", "'nan' is none"),
        ("price in 1, two", "'two' is none"),
        ("price <= 1_0", "'1_0' is none"),
        ("price contains 2", "'price' holds numbers, which takes == != < <= > >= in$"),
        ("title <= 3", "only where all of it is numbers; 'Red apple' is none. Use == != in contains, or make"),
        ("list price <= cheap", "'cheap' is none"),
        ("in stock == yes", "'in stock' holds true or false, not 'yes'"),
        ("in stock > true", "'in stock' holds true or false, which takes == !="),
        ("genres == Drama", "'genres' holds lists, which takes in contains"),
        ("codes contains two", "'codes' holds numbers, and 'two' is none"),
        ("__import__('os').getcwd() == 1", "unknown column '__import__"),
    ],
)
def test_a_wrong_condition(condition, message):
    with pytest.raises(ValueError, match=message.removesuffix("$") + (r"\.$" if message.endswith("$") else "")):
        rows(condition)


def test_every_wrong_condition_is_named_at_once():
    with pytest.raises(ValueError, match=r"condition 'prise > 1': unknown .*; condition 'year > x': .*'x' is none\.$"):
        rows("prise > 1", "price > 1", "year > x")


def test_a_column_of_another_type_takes_no_condition():
    with pytest.raises(ValueError, match=r"'at' holds timestamp\[us\], which takes no condition"):
        matches(pa.table({"at": pa.array([0], pa.timestamp("us"))}), ["at > 1"])


def test_a_catalogue_answers_with_item_ids(catalog):
    priced = Catalog(catalog.items.append_column("price", pa.array(range(12))), catalog._split)
    assert priced.where("price >= 3", "title contains tea") == ["item-6", "item-7"]
    assert priced.where("item_id in item-9, item-1") == ["item-1", "item-9"]
    assert priced.where("price > 99") == []
