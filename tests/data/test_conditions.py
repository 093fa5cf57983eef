"""Conditions on columns: equal to a Python loop over the rows; whatever is no condition is refused with the remedy."""

from __future__ import annotations

import decimal
import operator
import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars import sql_expr

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
    "select": [2000, 1, 2, 3, 2000],
    'a "quoted" name': ["it's", 'a""b', None, "", ""],
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
        ("NOT price = 20", [1, 4]),
        ("price IN (20, -3)", [0, 4]),
        ("price BETWEEN -3 AND 9.5", [1, 4]),
        ("price IS NULL", [2, 3]),
        ("year = 1152921504606846977", [4]),  # its neighbour is the same float64
        ("year >= 1999.5", [1, 2, 4]),
        ("year < 99999999999999999999", [0, 1, 2, 4]),
        ('try_cast("list price" AS DOUBLE) <= 9.5', [1, 4]),
        ("\"list price\" = '9.5'", []),  # text is compared as it is written
        ("\"list price\" = '9.50'", [1]),
        ("title ILIKE '%red%'", [0, 1]),
        ("title LIKE '%, p%'", [3]),
        ("replace(lower(title), lower('RED P'), '') != lower(title)", [1]),  # of every character only itself
        ("NOT replace(title, 'e', '') != title", [4]),
        ("category = 'Books'", [0, 2]),
        ("category = 'books'", []),
        ("category <> 'Books'", [1, 4]),
        ("category in ('Books', 'Music')", [0, 1, 2]),
        ("category IN ('Music', 'Art, Craft')", [1, 4]),
        ('"in stock"', [0, 3]),
        ('NOT "in stock"', [1, 4]),
        ('"in stock" = true AND price > 5', [0]),
        ("array_contains(genres, 'Drama')", [0, 1]),
        ("array_contains(genres, 'Sci-Fi') OR array_contains(genres, 'drama')", [1, 4]),
        ("array_contains(codes, 2)", [0, 4]),
        ("array_length(codes) > 1", [0]),
        ("select > 1990", [0, 4]),  # the name of a column, though SQL has a word for it
    ],
)
def test_a_condition(condition, met):
    assert rows(condition) == met


def test_all_conditions_hold_and_none_is_no_condition():
    assert rows("category = 'Books'", "year > 1995") == [2]
    assert rows() == [0, 1, 2, 3, 4]


def test_a_part_of_text_may_have_the_signs_of_like():
    table = pa.table({"t": ["50% off", "50 cents off", "a_b", "axb", "A_B$1.", None]})
    met = {"50%": [0], "%": [0], "_": [2, 4], "a_b": [2, 4], "$1": [4], ".": [4], "\\": []}
    for part, expected in met.items():
        condition = f"replace(lower(t), lower('{part}'), '') != lower(t)"
        assert np.flatnonzero(matches(table, [condition])).tolist() == expected, part


def test_quotes_within_names_and_text():
    assert rows('"a ""quoted"" name" = \'it\'\'s\'') == [0]
    assert rows('"a ""quoted"" name" = \'a""b\'') == [1]


@pytest.mark.parametrize("dtype", [pa.int8(), pa.uint8(), pa.uint64(), pa.float32(), pa.decimal128(5, 2)], ids=str)
def test_every_type_of_numbers_is_compared(dtype):
    cells = [decimal.Decimal(value) for value in (1, 2, 3)] if pa.types.is_decimal(dtype) else [1, 2, 3]
    table = pa.table({"n": pa.array(cells, dtype)})
    for condition, met in {"n > 1.5": [2, 3], "n != 2": [1, 3], "n > -1": [1, 2, 3], "n < 1e30": [1, 2, 3]}.items():
        assert [n for n, is_met in zip((1, 2, 3), matches(table, [condition]), strict=True) if is_met] == met


def test_a_float32_equals_the_number_that_it_was_written_as():
    assert matches(pa.table({"n": pa.array([0.1], pa.float32())}), ["n = 0.1", "n <= 0.1"]).tolist() == [True]


def test_categories_and_chunks():
    """polars writes a Categorical as a dictionary, and a large file is read in chunks."""
    table = pa.table({"c": pa.array(["a", None, "b"]).dictionary_encode(), "l": [["x"], None, ["y", "x"]]})
    table = pa.concat_tables([table, table])
    assert matches(table, ["c != 'a'"]).tolist() == [False, False, True] * 2
    assert matches(table, ["array_contains(l, 'x')"]).tolist() == [True, False, True] * 2


NUMBERS = st.none() | st.integers(-3, 3) | st.floats(-3, 3, width=16)
WORDS = st.text("abA' ", min_size=1, max_size=3).map(str.strip).filter(bool)
COMPARE = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
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
    compare, texts_of = COMPARE[symbol], ["'" + word.replace("'", "''") + "'" for word in words]
    any_of = " OR ".join(f"array_contains(l, {text})" for text in texts_of)
    expected = {
        f"n {symbol} {number!r}": [n is not None and compare(n, number) for n in numbers],
        f"t ILIKE '%{texts_of[0][1:-1]}%'": [t is not None and words[0].lower() in t.lower() for t in texts],
        f"replace(t, {texts_of[0]}, '') != t": [t is not None and words[0] in t for t in texts],
        f"t IN ({', '.join(texts_of)})": [t in words for t in texts],
        f"t != {texts_of[0]}": [t is not None and t != words[0] for t in texts],
        any_of: [not set(words).isdisjoint(found or []) for found in lists],
        f"try_cast(written AS DOUBLE) {symbol} {number!r}": [n is not None and compare(n, number) for n in numbers],
    }
    for condition, met in expected.items():
        assert matches(table, [condition]).tolist() == met, condition
    both = [a and b for a, b in zip(*list(expected.values())[:2], strict=True)]
    assert matches(table, list(expected)[:2]).tolist() == both


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prise <= 20", r"condition 'prise <= 20': unknown column 'prise'; did you mean 'price'\?; text stands in"),
        ("zzz = 1", "unknown column 'zzz'; the columns are title, category, price"),
        ("list price <= 3", "unknown column 'list'; write \"list price\""),
        ("", "condition '': it names no column; write one SQL expression, such as"),
        ("1 = 1", "it names no column"),
        ("price", "its value is Float64, not true or false; write one SQL expression"),
        ("price =< 20", "unable to parse .*; price is Float64; write one SQL expression"),
        ("price <=", "unable to parse"),
        ("((price > 1)", "unable to parse"),
        ("price <= 'cheap'", r"cannot compare string with numeric type \(f64\); price is Float64"),
        (
            "title <= 3",
            r"cannot compare .*; title is String; text can be read as a number: try_cast\(\"title\" AS DOUBLE",
        ),
        ('cast("list price" AS DOUBLE) < 9', r"conversion .* failed .*: try_cast\(\"list price\" AS DOUBLE\)"),
        ("genres = 'Drama'", r"cannot cast List.*; genres is List\(String\); write .*array_contains\(genres"),
        ("array_contains(codes, 'two')", r"cannot check for String values in List\(Int64\) data"),
        # Conditions as llmrec took them before.
        ("genres contains Drama", r"'contains' is no SQL; use array_contains\(column, 'value'\) or column ILIKE"),
        ("category == Books", "unknown column 'Books'; .* text stands in single quotes"),
        ("category in Books,Music", "unknown column 'Books'"),
        ("price in 20, -3", "unable to parse .* write one SQL expression"),
        # What is not a condition on the columns of one item.
        ("count(price) > 1", "'count' is not a function that may stand here; there are array_contains, array_length"),
        ('"count"(price) > 1', "'count' is not a function"),
        ('"select"(price) > 1', "'select' is not a function"),
        ("price > 1; drop table x", "';' cannot stand here"),
        ("price > 1 -- comment", "unknown column 'comment'"),
        ("price > 1 /* comment */", "unknown column 'comment'"),
        ("title = $$x$$", "cannot stand here"),
        ("`title` = 'x'", "cannot stand here"),
        ("__import__('os').getcwd() = 1", "cannot stand here"),
    ],
)
def test_a_wrong_condition(condition, message):
    with pytest.raises(ValueError, match=message):
        rows(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "price IN (SELECT price FROM read_csv('{file}'))",
        "price IN (select * from read_csv('{file}'))",
        "(SELECT count(*) FROM read_csv('{file}')) > price",
        "EXISTS (FROM read_csv('{file}')) AND price > 1",
        "price > 1 OR title IN (WITH x AS (SELECT 1) SELECT * FROM x)",
        "title = E'\\' OR price IN (SELECT price FROM read_csv('{file}')) OR title = E'\\'",
        "title = 'a\\' OR price IN (SELECT price FROM read_csv('{file}'))",
        "\"select\" IN (select select from read_csv('{file}'))",
        "read_csv('{file}') = title",
        'price IN (TABLE "{file}")',
        "price > 1 UNION SELECT 1",
    ],
)
def test_no_condition_reads_a_file(condition, tmp_path, monkeypatch):
    """polars runs sub-queries while it parses, and would name the columns of the file in its error."""
    (tmp_path / "secret.csv").write_text("password\n1\n")
    given = []
    monkeypatch.setattr(pl, "sql_expr", lambda sql: given.append(sql) or sql_expr(sql))
    with pytest.raises(ValueError) as caught:
        rows(condition.format(file=tmp_path / "secret.csv"))
    assert "password" not in str(caught.value)
    assert [
        sql for sql in given if re.search(r"\b(select|from|with)\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", sql.lower()))
    ] == []


def test_every_wrong_condition_is_named_at_once():
    with pytest.raises(ValueError, match=r"condition 'prise > 1': unknown .*; condition 'year > x': unknown .*\.$"):
        rows("prise > 1", "price > 1", "year > x")


def test_a_catalogue_answers_with_item_ids(catalog):
    priced = Catalog(catalog.items.append_column("price", pa.array(range(12))), catalog._split)
    assert priced.where("price >= 3", "title ILIKE '%tea%'") == ["item-6", "item-7"]
    assert priced.where("price >= 3 AND title ILIKE '%tea%'") == ["item-6", "item-7"]
    assert priced.where("item_id IN ('item-9', 'item-1')") == ["item-1", "item-9"]
    assert priced.where("price > 99") == []
