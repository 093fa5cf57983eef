"""The rule for the columns of an item table: text, lists, numbers, prices, records, and every type of parquet."""

from __future__ import annotations

import datetime
import decimal
import time

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.columns import HISTORY, ITEM_ID, SPLIT, TARGET, USER_ID
from llmrec.data.intake.cells.fields import Fields
from llmrec.data.intake.cells.lists import parse
from llmrec.data.intake.cells.prices import read_numbers, read_prices
from llmrec.data.intake.cells.text import clean
from llmrec.data.intake.read import read_tables

CLEANED = {
    "Tom &amp; Jerry": "Tom & Jerry",
    "Tom &amp;amp; Jerry&#39;s": "Tom & Jerry's",
    "&amp;lt;br&amp;gt;One&lt;br/&gt;Two": "One Two",
    "One<br>Two<BR />Three</p>": "One Two Three",
    "<b>Bold</b>ly <i class='x>y'>go</i>": "Boldly go",
    '<a href="http://x">link</a> <ul><li>1</li><li>2</li></ul>': "link 1 2",
    "<script>alert(1)</script><style>p {}</style><!-- no -->Tea": "Tea",
    "I <3 you, 5 < 6 > 4, a <b and c> d, <a_1>": "I <3 you, 5 < 6 > 4, a <b and c> d, <a_1>",
    "AT&T ?a=1&copy=2 &unknown;": "AT&T ?a=1&copy=2 &unknown;",
    "\x1b[31mRed\x1b[0m \x1b]0;title\x07lamp \x9b1mx": "Red lamp x",
    "null\x00 byte\x07 and &#27;": "null byte and",
    " non\u00a0breaking\n\tspace ": "non breaking space",
    "Cafe\u0301 zero\u200bwidth \u202emirrored": "Café zerowidth mirrored",
    "👩\u200d👩\u200d👧 日本語": "👩\u200d👩\u200d👧 日本語",
    "\u200b <br>": None,
}


@pytest.mark.parametrize("given", CLEANED)
def test_clean_text(given):
    assert clean(pl.Series([given])).to_list() == [CLEANED[given]]


LISTS = {
    "['Beauty', 'Hair']": ["Beauty", "Hair"],
    '["Beauty", "Men\'s \\u00e9 \\ud83d\\ude00"]': ["Beauty", "Men's é 😀"],
    "['Beauty' 'Hair']": ["Beauty", "Hair"],
    "['Beauty'\n 'It\\'s']": ["Beauty", "It's"],
    "[u'Action', u\"Women's\"]": ["Action", "Women's"],
    "[['a', 'b'], ['a', 'c']]": ["a", "b", "c"],
    "array(['a', 'b'], dtype=object)": ["a", "b"],
    "[array(['a', 'b'], dtype=object) array(['a'], dtype=object)]": ["a", "b"],
    "('a',)": ["a"],
    "{'a', 'b'}": ["a", "b"],
    "[Beauty & Care, Hair]": ["Beauty & Care", "Hair"],
    "['a', None, nan]": ["a"],
    "[1, 2]": ["1", "2"],
    "['a, b', 'c]']": ["a, b", "c]"],
    "[]": [],
    "[[]]": [],
    "{'a': 1}": None,
    '[{"a": 1}]': None,
    "[0.25, 1.5e-3]": None,
    "['a' ... 'b']": None,
    "['a', 'b'": None,
    "['a'] and ['b']": None,
    "Beauty": None,
}


@pytest.mark.parametrize("given", LISTS)
def test_parse_lists(given):
    assert parse(given) == LISTS[given]


PRICES = [
    (["$12.99", "$1,299.00", None, "from $5"], [12.99, 1299.0, None, 5.0]),
    (["1.299,00 €", "EUR 5", "12,50 €", "1.299 €"], [1299.0, 5.0, 12.5, 1299.0]),
    (["$5 - $10", "$5 to $10", "10€ – 20€", "£5+"], [5.0, 5.0, 10.0, 5.0]),
    (["CHF 1'299.-", "1 299,00 kr", "₹12,99,000", "US$.99"], [1299.0, 1299.0, 1299000.0, 0.99]),
    (["Free", "Free to Play", "4,99 €", "0,125 €"], [0.0, 0.0, 4.99, 0.125]),
    (["$1,299", "$5"], [1299.0, 5.0]),
    (["$1.299", "$5.5"], [1.299, 5.5]),
    (["$1,299", "$5,5", "$5.5"], [None, 5.5, 5.5]),
    (["call us", "-5", "$$", "5 10", "was $9 now $5", "12.99.5"], [None] * 6),
]


@pytest.mark.parametrize(("given", "amounts"), PRICES)
def test_read_prices(given, amounts):
    assert read_prices(pl.Series(given)).amounts.to_list() == amounts


@pytest.mark.parametrize(
    ("given", "comma", "numbers"),
    [
        (["1", "-2", None], False, [1, -2, None]),
        (["1999.0", "2001.0", None], False, [1999, 2001, None]),
        (["1.5", "2", " 1e-05 "], False, [1.5, 2.0, 1e-05]),
        (["9007199254740993", "1"], False, [9007199254740993, 1]),
        (["4,5", "1.299,25", "3"], True, [4.5, 1299.25, 3.0]),
        (["4,5", "3"], False, None),
        (["1,299", "3"], True, None),
        (["0104257", "1"], False, None),
        (["1e5", "2"], False, None),
        (["99999999999999999999"], False, None),
        (["one", "2"], False, None),
    ],
)
def test_read_numbers(given, comma, numbers):
    found = read_numbers(pl.Series(given), comma)
    assert (None if found is None else found.to_list()) == numbers


def fields(**columns) -> Fields:
    """Fields of a table whose items are numbered."""
    height = len(next(iter(columns.values())))
    return Fields(pl.DataFrame({"item_id": [str(row) for row in range(height)], "title": ["t"] * height, **columns}))


def test_lists_written_as_text_are_read_with_what_stands_beside_them():
    found = fields(categories=["['Beauty', 'Hair']", "[]", "Lamps", None], genres=["a|b", "c", "", "a"])
    assert found.items["categories"].to_list() == [["Beauty", "Hair"], None, ["Lamps"], None]
    assert found.items["genres"].to_list() == [["a", "b"], ["c"], None, ["a"]]
    assert found.notes == ["read from text as lists: categories, genres."]


def test_a_list_in_a_column_of_prose_is_joined():
    found = fields(description=["One. Two.", "['It shines.', 'Really.', 'x']", "[sic]", "Three", "[]"])
    assert found.items["description"].to_list() == ["One. Two.", "It shines. Really. x", "[sic]", "Three", None]


def test_titles_in_brackets_stay():
    titles = ["[REC]", "[1408]", "(500) Days", "['a', 'b']"]
    found = Fields(pl.DataFrame({"item_id": list("abcd"), "title": titles}))
    assert found.items["title"].to_list() == ["[REC]", "[1408]", "(500) Days", "a, b"]


def test_words_for_missing_are_missing_and_counted():
    found = fields(brand=["nan", "Acme", " None ", "N/A", "Nan's"], year=["1999.0", "nan", "2001.0", None, ""])
    assert found.items["brand"].to_list() == [None, "Acme", None, None, "Nan's"]
    assert found.items["year"].to_list() == [1999, None, 2001, None, None]
    assert "missing by a word such as 'nan' or 'None': 4 cells (brand 3, year 1)." in found.notes


def test_whole_decimals_are_integers_but_prices_are_not():
    found = fields(year=[1999.0, float("nan")], price=[5.0, float("nan")], lat=[1.0, 2.0], edition=["1.0", "first"])
    assert found.items["year"].to_list() == [1999, None] and found.items["price"].to_list() == [5.0, None]
    assert found.items.schema["lat"] == pl.Float64 and found.items["edition"].to_list() == ["1", "first"]


def test_what_was_cleaned_and_lost_is_said():
    found = fields(price=["$5", "€6", "ask us", "7"], brand=["A &amp; B", "C  D", "<b>E</b>", "F"])
    assert found.items["price"].to_list() == [5.0, 6.0, None, 7.0]
    assert found.items["brand"].to_list() == ["A & B", "C D", "E", "F"]
    assert found.notes == [
        "no price, and so missing: 1 cell of column 'price', the first is 'ask us'.",
        "column 'price' has amounts in $ and €; they are not converted into one currency.",
        "read from text as numbers: price.",
        "cleaned of markup, entities or invisible characters: 2 cells (brand 2).",
    ]


def test_money_is_told_from_words():
    found = fields(deal=["$5", None, "€6"], price=["$$", "$", "$$$"], note=["$5", "5", "x"], code=["007", "8", "9"])
    assert found.items["deal"].to_list() == [5.0, None, 6.0]
    for name in ("price", "note", "code"):
        assert found.items.schema[name] == pl.String


def read(tmp_path, items: pa.Table, log: pa.Table | None = None):
    """Items and interactions read from parquet files with these columns beside the usual ones."""
    usual = {"item_id": pa.array(["a", "b"]), "title": pa.array(["Lamp", None])}
    table = pa.table({**usual, **{name: items[name] for name in items.column_names}})
    pq.write_table(table, tmp_path / "items.parquet")
    usual = {"user_id": pa.array(["u", "u"]), "item_id": pa.array(["a", "b"]), "timestamp": pa.array([1, 2])}
    given = {name: log[name] for name in log.column_names} if log is not None else {}
    pq.write_table(pa.table({**usual, **given}), tmp_path / "log.parquet")
    return read_tables(tmp_path / "log.parquet", tmp_path / "items.parquet")


RECORD = pa.array([{"id": 1, "name": "Light"}, None])
FIELD_TYPES = {
    "struct": (RECORD, ""),
    "list of structs": (pa.array([[{"id": 1}], []]), ""),
    "map": (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), ""),
    "records as text": (pa.array(["{'id': 1}", "[{'id': 2}]"]), ""),
    "list": (pa.array([["a&amp;b", "c"], []]), "a&b, c"),
    "large list": (pa.array([["a"], None], pa.large_list(pa.large_string())), "a"),
    "array": (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), "a, b"),
    "list of lists": (pa.array([[["Light", "Lamp"], ["Light", "Home"]], None]), "Light, Lamp, Home"),
    "list of lists of lists": (pa.array([[[["a"]], [["b"]]], []]), "a, b"),
    "list of numbers": (pa.array([[1, 2], None]), "1, 2"),
    "list of nulls": (pa.array([[None], []]), ""),
    "list of categories": (pa.array([["a"], []]).cast(pa.list_(pa.dictionary(pa.int32(), pa.string()))), "a"),
    "list of bytes": (pa.array([[b"\xff"], []]), ""),
    "list of dates": (pa.array([[datetime.date(2020, 1, 2)], []]), "2020-01-02"),
    "bytes of text": (pa.array([b"Acme", None]), "Acme"),
    "other bytes": (pa.array([b"\xff\xfe", None], pa.large_binary()), ""),
    "bytes of fixed size": (pa.array([b"ab", None], pa.binary(2)), "ab"),
    "decimal": (pa.array([decimal.Decimal("1.50"), None]), "1.5"),
    "half float": (pa.array(np.array([1.0, 2.0], np.float16)), "1"),
    "duration": (pa.array([datetime.timedelta(days=1), None]), ""),
    "time": (pa.array([datetime.time(1), None]), ""),
    "date": (pa.array([datetime.date(2020, 1, 2), None]), "2020-01-02"),
    "instant": (pa.array([datetime.datetime(2020, 1, 2), None], pa.timestamp("ns", "UTC")), ""),
    "null": (pa.nulls(2), ""),
    "category": (pa.array(["a", None]).dictionary_encode(), "a"),
    "category of integers": (pa.array([7, None]).dictionary_encode(), "7"),
    "string view": (pa.array(["a", None], pa.string_view()), "a"),
    "unsigned": (pa.array([2**63, None], pa.uint64()), str(2**63)),
    "boolean": (pa.array([True, None]), "true"),
    "extension": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['["a"]', None])), "a"),
    "uuid": (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\xff" * 16, None], pa.binary(16))), ""),
}


@pytest.mark.parametrize("kind", FIELD_TYPES)
def test_every_type_of_parquet_is_read_or_left_out_and_stays_readable(tmp_path, kind):
    cells, text = FIELD_TYPES[kind]
    for name in ("brand", "other"):
        dataset = read(tmp_path, pa.table({name: cells}))
        expected = f"Lamp. {text}" if text and name == "brand" else "Lamp"
        assert dataset.items.filter(pl.col("item_id") == "a")["text"].to_list() == [expected]
        dataset.items.write_parquet(tmp_path / "written.parquet")
        split = {name: pa.array([], pa.string()) for name in (USER_ID, SPLIT, HISTORY, TARGET)}
        catalog = Catalog(pq.read_table(tmp_path / "written.parquet"), pa.table(split))
        assert catalog.where("title = 'Lamp'") == ["a"]


PROSE_TYPES = {
    "list": (pa.array([["a", "b"], []]), ["a, b", None]),
    "list of lists": (pa.array([[["a"], ["b."], ["c"]], None]), ["a, b. c", None]),
    "whole float": (pa.array([1984.0, float("nan")]), ["1984", None]),
    "integer": (pa.array([1984, None]), ["1984", None]),
    "category": (pa.array(["a", "nan"]).dictionary_encode(), ["a", None]),
    "bytes": (pa.array([b"caf\xc3\xa9", None]), ["café", None]),
    "null": (pa.nulls(2), [None, None]),
}


@pytest.mark.parametrize("kind", PROSE_TYPES)
def test_titles_and_texts_of_every_type(tmp_path, kind):
    cells, expected = PROSE_TYPES[kind]
    dataset = read(tmp_path, pa.table({"title": cells, "text": cells}))
    assert dataset.items["title"].to_list() == expected
    assert dataset.items["text"].to_list() == [text or "" for text in expected]


REFUSED = {
    ("title", "struct"): RECORD,
    ("title", "list of structs"): pa.array([[{"id": 1}], []]),
    ("text", "bytes"): pa.array([b"\xff", None]),
    ("text", "map"): pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    ("title", "duration"): pa.array([datetime.timedelta(1), None]),
    ("lat", "list"): pa.array([[1.0], [2.0]]),
    ("lon", "struct"): RECORD,
    ("item_id", "list"): pa.array([["a"], ["b"]]),
    ("item_id", "struct"): RECORD,
}


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_a_needed_item_column_of_another_type_is_refused_by_name(tmp_path, name, kind):
    with pytest.raises(ValueError, match=rf"items.parquet: column {name} holds .*; ") as error:
        read(tmp_path, pa.table({name: REFUSED[name, kind]}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["user_id", ITEM_ID, "weight", "timestamp"])
@pytest.mark.parametrize("cells", [pa.array([["a"], ["b"]]), RECORD, pa.array([b"\xff", b"\xfe"])], ids=str)
def test_a_needed_column_of_the_log_of_another_type_is_refused_by_name(tmp_path, name, cells):
    with pytest.raises(ValueError, match=rf"log.parquet: column {name} holds ") as error:
        read(tmp_path, pa.table({}), pa.table({name: cells}))
    assert "\n" not in str(error.value)


def test_names_of_columns_in_capitals_make_text_too(tmp_path):
    table = pa.table({"Brand": ["Acme", None], "Genres": ["a|b", None], "Description": ["x &amp; y", None]})
    dataset = read(tmp_path, table)
    assert dataset.items["text"].to_list() == ["Lamp. a, b. Acme. x & y", ""]


def test_coordinates_that_are_not_known_are_missing(tmp_path):
    cells = [pa.array([1.5, float("nan")]), pa.array(["1,5", "nan"]), pa.array([decimal.Decimal("1.5"), None])]
    for given in (*cells, pa.array(["1.5", " "]).dictionary_encode(), pa.array([b"1.5", None])):
        assert read(tmp_path, pa.table({"lat": given})).items["lat"].to_list() == [1.5, None]


@pytest.mark.parametrize("kind", FIELD_TYPES)
@pytest.mark.parametrize("name", ["title", "brand", "lat", "price"])
def test_columns_of_every_type_may_stand_in_a_log_without_items(tmp_path, kind, name):
    log = {"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2], name: FIELD_TYPES[kind][0]}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    try:
        items = read_tables(tmp_path / "log.parquet").items
    except ValueError as error:
        assert f"log.parquet: column {name} holds" in str(error) or f"a {name} that is no number" in str(error)
    else:
        assert items["item_id"].to_list() == ["a", "b"] and items["text"].null_count() == 0


@pytest.mark.parametrize("kind", FIELD_TYPES)
def test_an_item_that_stands_twice_with_the_same_cells_is_read_once(tmp_path, kind):
    """The metadata of Amazon 2018 repeat products."""
    one = pa.table({"item_id": ["a", "b"], "title": ["Lamp", None], "other": FIELD_TYPES[kind][0]})
    pq.write_table(pa.concat_tables([one, one.slice(0, 1)]), tmp_path / "items.parquet")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}), tmp_path / "log.parquet")
    dataset = read_tables(tmp_path / "log.parquet", tmp_path / "items.parquet")
    assert dataset.items["item_id"].to_list() == ["a", "b"]
    assert any("exact repeats of another row: 1" in note for note in dataset.notes)


def test_an_item_that_stands_twice_with_other_cells_is_refused(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title,lat\na,x,1\nb,y,1\na,x,1\nb,z,1\nc,w,north\n")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    with pytest.raises(ValueError, match=r"1 row repeats an item_id, first at line 5 \('b'\)") as error:
        read_tables(tmp_path / "log.csv", tmp_path / "items.csv")
    assert "no number, first at line 6 ('north')" in str(error.value)


def test_records_that_are_written_as_text_are_no_text():
    """TMDB and JSON lines: most cells may be empty lists, and some may be words."""
    some = fields(
        genres=["[]", "[]", "[]", "[{'id': 1}]", '{"id": 2}'], category=["Tea", "Jam", '{"id": 2}', None, "x"]
    )
    assert some.items["text"].to_list() == ["t. Tea", "t. Jam", "t", "t", "t. x"]
    assert any("'genres' holds records" in note for note in some.notes)
    assert "records, and so missing: 1 cell of column 'category'." in some.notes
    lists = fields(tags=["[]", "[]", "['a']", "['b']", '{"id": 2}'])
    assert lists.items["tags"].to_list() == [None, None, ["a"], ["b"], None]


@pytest.mark.parametrize("title", ["{'name': 'Tea'}", '[{"name": "Tea"}]', "{name=Tea}"])
def test_titles_that_are_records_as_text_are_refused(title):
    found = Fields(pl.DataFrame({"item_id": ["a", "b"], "title": [title, None]}))
    assert found.problems == ["column title holds records that are written as text; a title is text, so convert it."]


def test_empty_lists_are_missing_in_every_column():
    found = fields(year=["1999", "[]", "2001.0"], price=["$5", "[]", "()"], brand=["Acme", "[]", "[[]]"], x=["[]"] * 3)
    assert found.items["year"].to_list() == [1999, None, 2001] and found.items["price"].to_list() == [5.0, None, None]
    assert found.items["brand"].to_list() == ["Acme", None, None] and found.items["x"].to_list() == [None] * 3


@pytest.mark.parametrize(
    ("name", "cells", "lists"),
    [
        ("genres", ["Drama, War", "Crime"], [["Drama", "War"], ["Crime"]]),
        ("Tags", ["big;red", "a, b"], [["big", "red"], ["a, b"]]),
        ("keywords", ["a|b, c", None], [["a", "b, c"], None]),
        ("categories", ["Clothing, Shoes & Jewelry|Men", "Home"], [["Clothing, Shoes & Jewelry", "Men"], ["Home"]]),
    ],
)
def test_columns_of_several_values_are_split(name, cells, lists):
    assert fields(**{name: cells}).items[name].to_list() == lists


def test_categories_with_commas_stay_text():
    cells = ["Clothing, Shoes & Jewelry", "Home"]
    assert fields(categories=cells).items["categories"].to_list() == cells


@pytest.mark.parametrize(
    "cell", ["[" + "a" * 200_000 + "'b']", "$" + "1 " * 100_000, "[" * 100_000 + "]", "&amp;" * 50_000]
)
def test_long_cells_take_no_long_time(cell):
    begin = time.process_time()
    fields(brand=[cell, "x"], price=[cell, "x"])
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("decimal_comma", "cells", "prices"),
    [
        (False, ["1.299", "899"], [1.299, 899.0]),
        (True, ["1.299", "899"], [1299.0, 899.0]),
        (True, ["1.299", "12,50"], [1299.0, 12.5]),
        (True, ["12.99", "899"], [12.99, 899.0]),
    ],
)
def test_points_in_prices_of_a_file_with_decimal_commas(decimal_comma, cells, prices):
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["t", "t"], "price": cells})
    assert Fields(items, decimal_comma).items["price"].to_list() == prices
