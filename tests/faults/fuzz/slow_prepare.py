"""What `llmrec prepare` must make of a log, computed row by row without polars: the judge of fuzzed files."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

ISO = re.compile(r"\d{4}[-/]\d\d[-/]\d\d.*")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Row:
    """One interaction as a file gives it; None where a cell is empty."""

    user: str | None
    item: str | None
    time: str | None


def time_of(text: str | None) -> Fraction | None:
    """Value of a time, exactly; None if it is neither a finite number nor an ISO date."""
    text = re.sub(r"\s+", " ", (text or "").strip())
    if NUMBER.fullmatch(text):
        return Fraction(text) if "e" not in text.lower() or len(text) < 12 else None
    if ISO.fullmatch(text):
        try:
            time = datetime.fromisoformat(text.replace("/", "-").replace(" UTC", "Z").replace(" GMT", "Z"))
        except ValueError:
            return None
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return Fraction(int((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() // 1)) + Fraction(
            time.microsecond, 10**6
        )
    return None


def usable(rows: Sequence[Row], items: Sequence[str] | None, order_only: bool) -> bool:
    """True if every row has ids and a time, and names an item that there is."""
    if not rows or any(not row.user or not row.item for row in rows):
        return False
    if items is not None and ("" in items or len(set(items)) < len(items) or not {r.item for r in rows} <= set(items)):
        return False
    return order_only or all(time_of(row.time) is not None for row in rows)


def without_repeats(rows: Sequence[Row]) -> list[Row]:
    """The first of the rows that have one user, item and time."""
    return list({(row.user, row.item, time_of(row.time)): row for row in reversed(rows)}.values())[::-1]


def core(rows: Sequence[Row], k: int) -> list[Row]:
    """Rows of users and items with at least k rows each."""
    kept = list(rows)
    while True:
        users, items = Counter(row.user for row in kept), Counter(row.item for row in kept)
        fewer = [row for row in kept if users[row.user] >= k and items[row.item] >= k]
        if len(fewer) == len(kept):
            return kept
        kept = fewer


def sequences(rows: Sequence[Row], order_only: bool) -> dict[str, list[str]]:
    """Items of each user by time, ties in the order of the rows."""
    of_user: dict[str, list[tuple[Fraction, int, str]]] = {}
    for place, row in enumerate(rows):
        time = Fraction(0) if order_only else time_of(row.time)
        of_user.setdefault(row.user, []).append((time, place, row.item))
    return {user: [item for _, _, item in sorted(entries)] for user, entries in of_user.items()}


def read_text(content: bytes, separator: str) -> list[list[str]] | None:
    """Cells of delimited text as RFC 4180 and the rule of docs/prepare.md have it; None if it is no such text."""
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    try:
        text = content.decode(marks.get(content[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n")
    if "\0" in text:
        return None
    text = text if "\n" in text else text.replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    expected = lines[0].count(separator)
    if all(line.count(separator) == expected for line in lines):  # each line is a row, whatever its quotes
        return [[_unquoted(cell) for cell in line.split(separator)] for line in lines]
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if any(row)]
    except csv.Error:
        return None
    return rows if all(len(row) == len(rows[0]) for row in rows) else None


def _unquoted(cell: str) -> str:
    is_whole = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if is_whole else cell
