"""JSON lines: one object per line, or one array of objects; cells become text as they are written, to the last digit.

A number keeps its digits, a list or an object is its JSON text, null is an empty cell. Files of Python's printed
dictionaries (Amazon 2014's metadata) are read as well. A column is used only if it is asked for, so others may be
nested or change their type from line to line.
"""

from __future__ import annotations

import ast
import io
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from llmrec.data.intake.files.content import check_utf8, text_of
from llmrec.data.intake.files.rows import Rows

CHUNK = 100_000  # rows that are held as Python objects at a time


class Written(float):
    """Number with a fraction or an exponent, and the text that it was read from."""

    def __new__(cls, text: str) -> Written:
        """Read the number, and keep its text."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


DECODER = json.JSONDecoder(parse_float=Written, parse_constant=lambda name: None if name == "NaN" else name)


def open_json_lines(path: Path) -> Rows:
    """Open a file of JSON lines.

    Args:
        path: The file.

    Raises:
        ValueError: If it is not UTF-8, or a line is no JSON object; the message has the line.
    """
    records = Records(path)
    return Rows(path, records.names, records.read, records.place, nested=records.nested)


class Records:
    """Objects of a JSON file, one row each.

    Args:
        path: The file.

    Attributes:
        names: Keys of all objects, in the order in which they appear.
        nested: Columns that were read and hold a list or an object -> place of the first one.
    """

    def __init__(self, path: Path):
        self.path = path
        self._source = text_of(path)
        self._lines = array("q")
        self.nested: dict[str, str] = {}
        names: dict[str, None] = {}
        for _, record in self._records():
            if not record.keys() <= names.keys():
                names |= dict.fromkeys(record)
        self.names = list(names)

    def read(self, columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        """Read some columns, cells as text and null where they are absent or null.

        Args:
            columns: Names of the columns.
            limit: Number of rows; all of them if None.
        """
        self._lines = array("q")
        parts: list[pl.DataFrame] = []
        cells: dict[str, list[str | None]] = {name: [] for name in columns}
        for line, record in islice(self._records(), limit):
            self._lines.append(line)
            for name, column in cells.items():
                value = record.get(name)
                if isinstance(value, list | dict):
                    self.nested.setdefault(name, f"line {line}")
                column.append(value if isinstance(value, str) else cell(value))
            if len(self._lines) % CHUNK == 0:
                parts.append(self._frame(cells))
                cells = {name: [] for name in columns}
        return pl.concat([*parts, self._frame(cells)])

    def place(self, row: int, height: int) -> str:
        """Line of a row."""
        return f"line {self._lines[row]}"

    def _frame(self, cells: dict[str, list[str | None]]) -> pl.DataFrame:
        """Rows of the lines that were read last."""
        try:
            return pl.DataFrame(cells, dict.fromkeys(cells, pl.String))
        except UnicodeEncodeError as error:
            column = next(column for column in cells.values() if error.object in column)
            line = self._lines[len(self._lines) - len(column) + column.index(error.object)]
            raise ValueError(
                f"{self.path}: line {line} has half of a surrogate pair (\\ud800 to \\udfff), which is no character; "
                "remove it."
            ) from None

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number of the line of each object, from 1, and the object."""
        with self._opened() as lines:
            parse = None
            for number, content in enumerate(lines, start=1):
                text = self._decode(number, content).strip()
                if not text:
                    continue
                if parse is None:
                    if text.startswith("["):
                        yield from self._array()
                        return
                    parse = ast.literal_eval if text.startswith(("{'", "{u'", '{u"')) else DECODER.decode
                yield number, self._record(number, text, parse)

    def _opened(self) -> BinaryIO:
        return self._source.open("rb") if isinstance(self._source, Path) else io.BytesIO(self._source)

    def _decode(self, number: int, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError:
            check_utf8(self.path, self._source)
            raise

    def _record(self, number: int, text: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            record = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            remedy = "write one object per line"
            if text == "{":
                remedy += f"; `jq -c . {self.path.name} > lines-{self.path.name}` does"
            reason = str(error).split(":")[0] if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise ValueError(f"{self.path}: line {number} is not JSON ({reason}); {remedy}.") from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{self.path}: line {number} holds {type(record).__name__}, not an object; write one per line."
            )
        return record

    def _array(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Objects of one array; what stands for their line is their place in it."""
        with self._opened() as file:
            whole = self._decode(1, file.read())
        try:
            records = DECODER.decode(whole.strip())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: the array is not JSON ({error}); export it again.") from None
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                raise ValueError(
                    f"{self.path}: element {number} of the array holds {type(record).__name__}, not an object."
                )
            yield number, record


def cell(value: object) -> str | None:
    """Text of a value: a string itself, a number as it was written, a list or an object as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Written):
        return value.text
    return json.dumps(value, ensure_ascii=False)
