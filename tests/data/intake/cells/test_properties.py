"""Properties of the rule for cells: what a program writes is read back, whatever stands in it."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrec.data.intake.cells.fields import Fields
from llmrec.data.intake.cells.lists import parse
from llmrec.data.intake.cells.prices import read_prices
from llmrec.data.intake.cells.text import clean

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MARKS = st.sampled_from(
    ["<br>", "</b>", "&amp;", "&#39;", "\x1b[31m", "\x9b0m", "\u202e", "[", "{", "nan", "$", "'", '"']
)
HOSTILE = st.lists(st.one_of(TEXT, MARKS), max_size=6).map("".join)
AMOUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=6)
LIGHT = settings(derandomize=True, max_examples=50, deadline=None)


@LIGHT
@given(st.lists(TEXT, max_size=6))
@example(["It's", '"', "\\", "\\n", "\x00", "😀", "]", "', '"])
def test_lists_that_programs_write_are_read_back(values):
    assert parse(repr(values), words=False) == values
    assert parse(json.dumps(values), words=False) == values
    assert parse(json.dumps(values, ensure_ascii=False, indent=1), words=False) == values


@LIGHT
@given(st.lists(TEXT.filter(lambda value: "..." not in value), min_size=1, max_size=6))
def test_arrays_that_numpy_writes_are_read_back(values):
    array = np.array(values, dtype=object)
    assert parse(str(array), words=False) == values and parse(repr(array), words=False) == values


@LIGHT
@given(st.lists(st.lists(TEXT, max_size=3), min_size=1, max_size=4))
def test_inner_lists_are_flattened_with_each_value_once(lists):
    assert parse(repr(lists), words=False) == list(dict.fromkeys(value for values in lists for value in values))


def swiss(cents: int) -> str:
    return f"CHF {cents / 100:,.2f}".replace(",", "'")


def german(cents: int) -> str:
    return f"{cents / 100:,.2f} €".translate(str.maketrans(",.", ".,"))


def french(cents: int) -> str:
    return f"{cents / 100:,.2f} €".translate({ord(","): "\u202f", ord("."): ","})


@LIGHT
@given(AMOUNTS)
def test_prices_of_every_country_are_read_back(amounts):
    for write in (lambda cents: f"${cents / 100:,.2f}", german, french, swiss, lambda cents: f"USD {cents / 100:.2f}"):
        cells = clean(pl.Series([write(cents) for cents in amounts]))
        assert read_prices(cells).amounts.to_list() == [cents / 100 for cents in amounts]


@LIGHT
@given(HOSTILE)
def test_cleaned_text_has_no_invisible_character_and_single_blanks(cell):
    cleaned = clean(pl.Series([cell]))[0]
    if cleaned is not None:
        assert cleaned == unicodedata.normalize("NFC", cleaned) == " ".join(cleaned.split()) != ""
        assert not any(unicodedata.category(letter) == "Cc" or letter in "\u202e\u200b\ufeff" for letter in cleaned)


@LIGHT
@given(st.text("abc <>&;/b\x1b[m\u0301é", max_size=30).filter(lambda cell: "&" not in cell))
def test_plain_text_stays(cell):
    """Without markup, entities and codes, only blanks change."""
    if not any(letter in cell for letter in "<\x1b"):
        expected = unicodedata.normalize("NFC", " ".join(cell.split())) or None
        assert clean(pl.Series([cell])).to_list() == [expected]


@LIGHT
@given(st.lists(st.tuples(*[st.one_of(st.none(), HOSTILE)] * 5), min_size=1, max_size=5), st.booleans())
def test_any_table_of_text_is_read(rows, decimal_comma):
    names = ("title", "price", "genres", "description", "year")
    table = pl.DataFrame(rows, dict.fromkeys(names, pl.String), orient="row")
    fields = Fields(table.with_row_index("item_id"), decimal_comma)
    if not fields.problems:
        assert fields.items.height == len(rows) and fields.items["text"].null_count() == 0
