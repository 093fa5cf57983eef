"""Prices and other numbers that a file holds as text.

A price is an amount with at most one currency before and one behind it: `$1,299.00`, `1.299,00 €`, `EUR 5`,
`CHF 1'299.-`. `from $5` and ranges such as `$5 - $10` count as their lowest price, and `free` as 0. No other text is
a price. The decimal sign is the last of two different signs, or a single one that is not followed by three digits.
Three digits behind a single sign (`1.299`) are thousands, unless other cells of the column use that sign for decimals.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import polars as pl

CURRENCY = (
    r"(?:(?:US|CA|AU|NZ|HK|NT|MX|[CASR])?\$|[€£¥₩₪₫₱₹₺₴₦₽฿₡₲₵₸₭₮₼₾￥]|AED|ARS|AUD|BGN|BRL|CAD|CHF|CLP|CNY|COP|CZK|DKK|EGP|"
    r"EUR|GBP|HKD|HUF|IDR|ILS|INR|ISK|JPY|KRW|MXN|MYR|NGN|NOK|NZD|PEN|PHP|PKR|PLN|RMB|RON|RUB|SAR|SEK|SGD|THB|TRY|TWD|"
    r"UAH|USD|VND|ZAR|euros?|Fr\.|Rs\.?|kr\.?|zł|Kč|Ft|руб\.?|лв\.?)"
)
AMOUNT = r"\.?\d(?:[\d.,'’ ]*\d)?"
LEAST = (
    r"(?:(?:from|starting (?:at|from)|starts at|only|about|approx\.|ca\.|ab|nur|dès|à partir de|desde|da|vanaf|~)\s*)?"
)
PRICE = re.compile(
    rf"{LEAST}(?P<before>{CURRENCY})?\s?(?P<amount>{AMOUNT})(?:[.,][-–—]{{1,2}})?\s?(?P<behind>{CURRENCY})?\+?"
    rf"(?:\s?(?:-|–|—|to|bis)\s?(?P<top>{CURRENCY})?\s?{AMOUNT}\s?(?P<last>{CURRENCY})?)?",
    re.IGNORECASE,
)
LONGEST = 80  # characters of a price
FREE = re.compile(r"free(?: to (?:play|use|try)| demo| mod)?|gratis|kostenlos", re.IGNORECASE)
WHOLE = re.compile(r"\d+|\d{1,3}(?:[.,]\d{2,3})*[.,]\d{3}")  # 1299, 1.299, 12,99,000
LIKE_THOUSANDS = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")
NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]\d+)?$"  # 1e5 may be a code
WITH_COMMA = r"^[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+$"


class Prices(NamedTuple):
    """Prices of a text column.

    Attributes:
        amounts: (N,) float64; null where a cell is empty or no price.
        marked: (N,) bool; cells that say themselves that they are prices, by a currency or as free.
        currencies: Signs and codes beside the amounts, each once.
    """

    amounts: pl.Series
    marked: pl.Series
    currencies: list[str]


def read_prices(cells: pl.Series) -> Prices:
    """Read prices from text.

    Args:
        cells: (N,) cleaned strings.

    >>> read_prices(pl.Series(["$1,299.00", "from $5", "$5 - $10", "1.299,00 €", "call us"])).amounts.to_list()
    [1299.0, 5.0, 5.0, 1299.0, None]
    """
    distinct = cells.drop_nulls().unique(maintain_order=True)
    found = {cell: match for cell in distinct if len(cell) <= LONGEST and (match := PRICE.fullmatch(cell))}
    written = {cell: re.sub(r"[ '’](?=\d{3})", "", match["amount"]) for cell, match in found.items()}
    signs = {sign for text in written.values() if (sign := _decimal_sign(text))}
    amounts = {cell: _amount(text, signs) for cell, text in written.items()}
    amounts |= {cell: 0.0 for cell in distinct if FREE.fullmatch(cell)}
    currencies = {
        cell: [match[name] for name in ("before", "behind", "top", "last") if match[name]]
        for cell, match in found.items()
    }
    marked = [cell for cell in distinct if currencies.get(cell) or FREE.fullmatch(cell)]
    return Prices(
        cells.replace_strict(list(amounts), list(amounts.values()), default=None, return_dtype=pl.Float64),
        cells.is_in(marked).fill_null(False),
        list(dict.fromkeys(sign.upper() for signs in currencies.values() for sign in signs)),
    )


def _decimal_sign(amount: str) -> str | None:
    """Sign that must be the decimal one, or None if no sign must."""
    signs = [letter for letter in amount if letter in ".,"]
    if not signs or amount.startswith("0"):
        return signs[-1] if signs else None
    are_thousands = len(set(signs)) == 1 and WHOLE.fullmatch(amount)
    return None if are_thousands or signs.count(signs[-1]) > 1 else signs[-1]


def _amount(amount: str, decimal_signs: set[str]) -> float | None:
    """Number that an amount says, given the decimal signs of the column; None if it can be read in two ways."""
    decimal = _decimal_sign(amount)
    if decimal is None and LIKE_THOUSANDS.fullmatch(amount):
        decimals = decimal_signs & set(amount)
        if decimals and len(decimal_signs) > 1:
            return None
        decimal = next(iter(decimals), None)
    whole, _, fraction = amount.partition(decimal) if decimal else (amount, "", "")
    if (whole and not WHOLE.fullmatch(whole)) or (fraction and not fraction.isdigit()):
        return None
    return float(re.sub(r"[.,]", "", whole) + "." + (fraction or "0"))


def read_numbers(cells: pl.Series, decimal_comma: bool = False) -> pl.Series | None:
    """Read a text column in which every given cell is a number.

    Args:
        cells: (N,) strings.
        decimal_comma: Whether `4,5` is a number, as in a file whose separator is no comma.

    Returns:
        (N,) int64, or float64 if a number is not whole; None if a cell is no number, has zeros in front (a code such as
        0104257), or all commas may as well part thousands.
    """
    cells = cells.str.strip_chars()
    cells = with_points(cells) if decimal_comma else cells
    given = cells.drop_nulls()
    if given.is_empty() or given.str.contains(r"^[+-]?0\d").any():
        return None
    if given.str.contains(r"^[+-]?\d+$").all():
        whole = cells.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == cells.null_count() else None
    return whole_if_all_are(cells.cast(pl.Float64)) if given.str.contains(NUMBER).all() else None


def with_points(cells: pl.Series) -> pl.Series:
    """Write decimal commas as points: `1.299,5` becomes `1299.5`.

    The cells stay as they are if others have decimal points, or if all commas may as well part thousands (`1,299`).
    """
    commas = cells.str.contains(WITH_COMMA).fill_null(False)
    points, thousands = cells.str.contains(r"^[+-]?\d+\.\d+$"), cells.str.contains(r"^[+-]?[1-9]\d{0,2},\d{3}$")
    if points.any() or thousands.filter(commas).all():
        return cells
    plain = cells.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    return plain.zip_with(commas, cells)


def whole_if_all_are(numbers: pl.Series) -> pl.Series:
    """Turn decimals into int64 if all are whole: pandas writes 1999.0 where some years are missing. NaN is null."""
    numbers = numbers.fill_nan(None)
    given = numbers.drop_nulls()
    whole = len(given) > 0 and given.is_finite().all() and bool(((given % 1 == 0) & (given.abs() < 2**53)).all())
    return numbers.cast(pl.Int64) if whole else numbers
