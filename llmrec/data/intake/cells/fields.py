"""Columns of an item table, made into text, lists, numbers and prices by the one rule of docs/own-data.md.

A column of text becomes lists if at least half of the given cells are lists; numbers if all are; prices if all bear a
currency, or if at least half are prices and the column is named so; else it is cleaned. `title` and `text` stay text,
and their lists are joined. Records are kept as they are, and take no part in the text that is composed of an item.
"""

from __future__ import annotations

from collections import Counter

import polars as pl
from polars.exceptions import PolarsError

from llmrec.data.columns import ITEM_ID, LAT, LON, TEXT, TITLE
from llmrec.data.intake.cells import lists, text
from llmrec.data.intake.cells.prices import read_numbers, read_prices, whole_if_all_are
from llmrec.data.intake.cells.types import holds_records, plain
from llmrec.data.public_formats import TEXT_FIELDS, compose_text, joined

NOT_FIELDS = (ITEM_ID, LAT, LON)
PROSE = (TITLE, TEXT)
FREE_TEXT = ("description",)  # `[sic]` is no list and 2.0 no year here
SPLIT_AT = {  # names of categories have commas of their own: Clothing, Shoes & Jewelry
    **dict.fromkeys(("genres", "genre", "tags", "keywords"), ("|", ";", ",")),
    **dict.fromkeys(("categories", "category"), ("|", ";")),
}


class Fields:
    """Columns of an item table under the rule, and what was noticed on the way.

    Args:
        items: Items; `item_id`, `lat` and `lon` are left alone.
        decimal_comma: Whether `4,5` is a number, as in a file whose separator is no comma.

    Attributes:
        items: Items with plain columns, and `text`, "" where nothing is known of an item.
        notes: Sentences that say which columns were read as what.
        problems: Sentences about columns that cannot be read.

    >>> fields = Fields(pl.DataFrame({"item_id": ["a"], "title": ["Tea &amp; Co"], "tags": ["['x', 'y']"]}))
    >>> fields.items.rows()
    [('a', 'Tea & Co', ['x', 'y'], 'Tea & Co. x, y')]
    """

    def __init__(self, items: pl.DataFrame, decimal_comma: bool = False):
        self.items = items
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._decimal_comma = decimal_comma
        self._lists: list[str] = []
        self._numbers: list[str] = []
        self._missing: Counter[str] = Counter()
        self._cleaned: Counter[str] = Counter()
        self._records: list[str] = []
        for name in items.columns:
            if name not in NOT_FIELDS:
                self._read(name)
        if not self.problems:
            composed = self.items if TEXT in items.columns else compose_text(self.items.drop(self._records))
            self.items = self.items.with_columns(composed[TEXT].fill_null(""))
        self._tell()

    def _read(self, name: str) -> None:
        given = self.items[name]
        try:
            cells = plain(given)
            cells = self._prose(name, cells) if name in PROSE else self._field(name, cells)
            self.items = self.items.with_columns(cells.alias(name))
        except PolarsError:
            if name in PROSE:
                self._refuse(name, str(given.dtype))
                return
            self.items = self.items.drop(name)
            self.notes.append(
                f"column '{name}' holds {given.dtype}, which is neither text nor numbers: it is left out."
            )

    def _refuse(self, name: str, what: str) -> None:
        self.problems.append(f"column {name} holds {what}; a {name} is text, so convert it.")

    def _prose(self, name: str, cells: pl.Series) -> pl.Series:
        """Text of `title` or `text`; a list is joined."""
        if holds_records(cells.dtype):
            self._refuse(name, str(cells.dtype))
            return cells
        if isinstance(cells.dtype, pl.List):
            return joined(lists.clean_values(cells.cast(pl.List(pl.String))))
        if cells.dtype.is_float():
            cells = whole_if_all_are(cells)
        cells = cells.cast(pl.String)
        if 2 * lists.are_records(cells).sum() > cells.count():
            self._refuse(name, "records that are written as text")
        return self._clean(name, cells)

    def _field(self, name: str, cells: pl.Series) -> pl.Series:
        """Values of any other column."""
        if holds_records(cells.dtype):
            self._records.append(name)
        elif isinstance(cells.dtype, pl.List) and (cells.dtype.inner == pl.String or name.lower() in TEXT_FIELDS):
            return lists.clean_values(cells.cast(pl.List(pl.String)))
        elif cells.dtype == pl.String:
            return self._text_field(name, cells)
        elif cells.dtype.is_float():
            return cells.fill_nan(None) if _is_price(name) else whole_if_all_are(cells)
        return cells

    def _text_field(self, name: str, given: pl.Series) -> pl.Series:
        cells = self._without_missing(name, given)
        values = lists.read_lists(cells, words=name.lower() not in FREE_TEXT)
        sizes = values.list.len()
        cells = cells.set((sizes == 0).fill_null(False), None)
        is_record = lists.are_records(cells) & values.is_null()
        if is_record.any() and 2 * is_record.sum() >= cells.count():
            self._records.append(name)
            return cells
        if values.count() and 2 * (sizes > 0).sum() >= cells.count():
            return self._as_lists(name, values, cells.set(is_record, None))
        if is_record.any():
            self.notes.append(f"records, and so missing: {_cells(int(is_record.sum()))} of column '{name}'.")
            cells = cells.set(is_record, None)
        # Where decimals have commas, 1.299 in a column of prices is no number with a fraction.
        numbers = None if _is_price(name) and self._decimal_comma else read_numbers(cells, self._decimal_comma)
        if numbers is not None:
            self._numbers.append(name)
            return numbers.cast(pl.Float64) if _is_price(name) else numbers
        cleaned = self._clean(name, cells)
        prices = self._prices(name, cleaned)
        if prices is not None:
            return prices
        for sign in SPLIT_AT.get(name.lower(), ()):
            if cleaned.str.contains(sign, literal=True).any():
                return self._as_lists(name, cleaned.str.split(sign), cleaned)
        return cleaned if name.lower() in FREE_TEXT else _without_point_zero(cleaned)

    def _as_lists(self, name: str, values: pl.Series, cells: pl.Series) -> pl.Series:
        """Lists of a column; a cell that is no list is a list of itself."""
        self._lists.append(name)
        single = pl.DataFrame({"cell": cells}).select(pl.concat_list("cell"))["cell"]
        return lists.clean_values(values.zip_with(values.is_not_null() | cells.is_null(), single))

    def _clean(self, name: str, cells: pl.Series) -> pl.Series:
        """Clean text; a list that stands among other cells is joined, a word for "missing" is null."""
        values = lists.read_lists(cells, words=False)
        cleaned = text.clean(cells)
        same = cleaned.eq_missing(text.collapse(cells))
        self._cleaned[name] += int((~same & values.is_null()).sum())
        cleaned = joined(lists.clean_values(values)).zip_with(values.is_not_null(), cleaned)
        return self._without_missing(name, cleaned)

    def _without_missing(self, name: str, cells: pl.Series) -> pl.Series:
        missing = text.is_missing(cells)
        self._missing[name] += int(missing.sum())
        return cells.set(missing, None).replace("", None)

    def _prices(self, name: str, cells: pl.Series) -> pl.Series | None:
        prices = read_prices(cells)
        is_price, given = prices.amounts.is_not_null(), cells.count()
        enough = 2 * is_price.sum() >= given if _is_price(name) else (is_price & prices.marked).sum() == given
        if not is_price.any() or not enough:
            return None
        self._numbers.append(name)
        lost = cells.filter(~is_price).drop_nulls()
        if len(lost):
            first = f"of column '{name}', the first is {lost[0]!r}"
            self.notes.append(f"no price, and so missing: {_cells(len(lost))} {first}.")
        if len(prices.currencies) > 1:
            signs = " and ".join(prices.currencies)
            self.notes.append(f"column '{name}' has amounts in {signs}; they are not converted into one currency.")
        return prices.amounts

    def _tell(self) -> None:
        for name in (name for name in self._records if name.lower() in TEXT_FIELDS):
            self.notes.append(
                f"column '{name}' holds records: it is kept, but no part of the text of an item. "
                "To use it, give its text as a column of its own."
            )
        for what, names in (("lists", self._lists), ("numbers", self._numbers)):
            if names:
                self.notes.append(f"read from text as {what}: {', '.join(names)}.")
        for counts, what in (
            (self._missing, "missing by a word such as 'nan' or 'None'"),
            (self._cleaned, "cleaned of markup, entities or invisible characters"),
        ):
            if counts.total():
                columns = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
                self.notes.append(f"{what}: {_cells(counts.total())} ({columns}).")


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count:,} cells"


def _is_price(name: str) -> bool:
    return "price" in name.lower()


def _without_point_zero(cells: pl.Series) -> pl.Series:
    """Write 1999.0 as 1999 in a column of words and numbers, if all its numbers end so: pandas wrote them."""
    numbers = cells.filter(cells.str.contains(r"^-?\d+(\.\d+)?$").fill_null(False))
    return cells.str.replace(r"^(-?\d+)\.0$", "${1}") if numbers.str.ends_with(".0").all() else cells
