"""Delimited text: CSV with any separator, tab-separated files, and `::` of MovieLens; every cell stays text.

The separator is the one that cuts the header and the first rows into the same number of cells. Quotes are read as in
RFC 4180. If each line has as many separators as the header, though, a quote that does not enclose a whole cell is an
ordinary character (`Deep "Dish`), and each line is a row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from llmrec.data.intake.files.content import check_utf8, endings, reading, text_of
from llmrec.data.intake.files.rows import Rows, clean_names
from llmrec.data.intake.public.layout import Layout

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "::": "'::'", " ": "blanks"}
EXPECTED = {".tsv": "\t", ".tab": "\t", ".inter": "\t", ".item": "\t", ".psv": "|"}
TYPED = {"\\t": "\t", "tab": "\t"}  # as one types it
UNUSED = "\x1f"  # ASCII's unit separator takes the place of a separator of several characters
LINE, COUNT = "line", "count"
CHUNK = 100_000  # rows that are held as Python objects at a time


def open_delimited(path: Path, lines: list[str], layout: Layout | None, separator: str | None) -> Rows:
    """Open a file of delimited text.

    Args:
        path: The file.
        lines: Its first lines.
        layout: Public layout of the file, if it has one.
        separator: Text between two cells; found from the first lines if None.

    Raises:
        ValueError: If it is not UTF-8 or of an encoding that a byte-order mark names, or repeats a column.
    """
    source = text_of(path, layout.encoding if layout else "utf-8")
    if lines and "\ufffd" in lines[0]:  # only columns that are read are checked later
        check_utf8(path, source)
    before = 0  # lines before the first row
    if match := re.fullmatch(r'"?sep=(.+?)"?', lines[0], re.IGNORECASE):  # Excel's own line before the header
        separator, before, lines = separator or match[1], 1, lines[1:]
    separator = TYPED.get(separator or "", separator) or (layout.separator if layout else None) or find_separator(lines)
    if layout and layout.header:
        names, before = list(layout.header), before + layout.header_lines
    else:
        names, before = clean_names(path, _cells(lines[0], separator) if lines else []), before + 1
    if len(separator.encode()) > 1:
        content = source if isinstance(source, bytes) else source.read_bytes()
        source = content.replace(separator.encode(), UNUSED.encode())
    text = Text(path, source, names, separator if len(separator.encode()) == 1 else UNUSED, before)
    rows = Rows(path, names, text.read, text.place, is_delimited=True, decimal_comma=separator != ",", notes=text.notes)
    if not layout and separator != EXPECTED.get(endings(path)[0], ","):
        rows.notes.append(f"{path} has {SEPARATORS.get(separator, repr(separator))} between its cells.")
    return rows


def find_separator(lines: Sequence[str]) -> str:
    """Text between the cells: it cuts most of the lines into as many cells as the first one, and that into most.

    Returns:
        One of SEPARATORS; a comma if none of them is in the first line.
    """

    def score(separator: str) -> tuple[int, int]:
        counts = [len(_cells(line, separator)) for line in lines if line.strip()]
        return (sum(count == counts[0] for count in counts), counts[0]) if counts and counts[0] > 1 else (0, 0)

    return max(SEPARATORS, key=score)


def _cells(line: str, separator: str) -> list[str]:
    if len(separator) > 1:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:  # a carriage return within a cell
        return line.split(separator)


class Text:
    """Text of a delimited file whose columns are known.

    Args:
        path: The file, for messages.
        source: Path or bytes of UTF-8 with newlines as line ends.
        names: Names of the columns.
        separator: One byte.
        before: Number of lines before the first row.
    """

    def __init__(self, path: Path, source: Path | bytes, names: list[str], separator: str, before: int):
        self.path, self.source, self.names, self.separator, self.before = path, source, names, separator, before
        self.notes: list[str] = []
        self.blank: list[int] = []  # rows of blank lines, which are left out
        self.lines: list[int] = []  # line of each row, if rows may have several

    def read(self, columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        """Read some columns, cells as text and null where they are empty.

        Args:
            columns: Names of the columns.
            limit: Number of rows; all of them if None.

        Raises:
            ValueError: If the text is not UTF-8, a row has not as many cells as the header, or a quote never closes.
        """
        with reading(self.path):
            try:
                facts = self._facts()
            except pl.exceptions.PolarsError:
                check_utf8(self.path, self.source)
                raise
            if facts["num_returns"] or (facts["num_stray"] and facts["num_uneven"]):
                return self._read_slowly(columns, limit)
            if facts["num_ragged"] and not facts["num_stray"]:
                self._refuse_ragged_line()
            if facts["num_stray"]:
                self._note(f"double quotes in {facts['num_stray']} lines enclose no cell and are read as they are.")
                frame = self._scan(columns, limit, None)
                frame = frame.with_columns(map(_without_enclosing_quotes, frame.get_columns()))
            else:
                frame = self._scan(columns, limit, '"' if facts["num_quoted"] else None)
        if limit is None and frame.height != facts["num_lines"]:
            return self._read_slowly(columns, limit)
        return self._without_blank_lines(frame) if facts["num_blank"] else frame

    def place(self, row: int, height: int) -> str:
        """Line in which a row begins."""
        if len(self.lines):
            return f"line {self.lines[row]}"
        for blank in self.blank:
            row += int(blank <= row)
        return f"line {row + self.before + 1}"

    def _input(self) -> Path | io.BytesIO:
        return self.source if isinstance(self.source, Path) else io.BytesIO(self.source)

    def _lines(self) -> pl.LazyFrame:
        """Lines after the header, and the number of separators in each that are not within quotes."""
        bare = pl.col(LINE).str.replace_all('"(?:[^"]|"")*"', "")
        count = bare.str.count_matches(self.separator, literal=True).alias(COUNT)
        return pl.scan_lines(self._input(), name=LINE, glob=False).slice(self.before).with_columns(count)

    def _facts(self) -> dict[str, int]:
        """Count lines of each kind in one pass, so that what polars reads is known to be what the lines say."""
        line, count, expected = pl.col(LINE), pl.col(COUNT), len(self.names) - 1
        blank, quoted = line.str.strip_chars() == "", line.str.contains('"', literal=True)
        separator = re.escape(self.separator)
        cell = f'(?:[^"{separator}]*|"(?:[^"]|"")*")'
        stray = quoted & ~line.str.contains(f"^{cell}(?:{separator}{cell})*$")
        counted = {
            "num_blank": blank,
            "num_quoted": quoted,
            "num_stray": stray,
            "num_returns": line.str.strip_suffix("\r").str.contains("\r", literal=True),  # polars drops some of them
            "num_ragged": (count != expected) & ~blank,
            "num_uneven": (line.str.count_matches(self.separator, literal=True) != expected) & ~blank,
        }
        sums = [kind.sum().alias(name) for name, kind in counted.items()]
        return self._lines().select(pl.len().alias("num_lines"), *sums).collect(engine="streaming").row(0, named=True)

    def _scan(self, columns: Sequence[str], limit: int | None, quote: str | None) -> pl.DataFrame:
        rows = pl.scan_csv(
            self._input(),
            has_header=False,
            skip_lines=self.before,
            schema=dict.fromkeys(self.names, pl.String),
            separator=self.separator,
            quote_char=quote,
            n_rows=limit,
            missing_columns="insert",  # of an empty line; no other is short here
            glob=False,
        )
        return rows.select(columns).collect(engine="streaming")

    def _read_slowly(self, columns: Sequence[str], limit: int | None) -> pl.DataFrame:
        """Read rows with Python's csv, which is strict about quotes and tells the line of each row.

        It serves files with line ends in cells; polars reads some broken quotes without an error.
        """
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        lines = io.StringIO(content.decode(), newline="\n")
        for _ in range(self.before):
            lines.readline()
        places = [self.names.index(name) for name in columns]
        found, parts = [], []
        self.lines.clear()
        for line, cells in islice(self._rows(lines), limit):
            self.lines.append(line)
            found.append([cells[place] or None for place in places])
            if len(found) == CHUNK:
                parts.append(_frame(found, columns))
                found = []
        return pl.concat([*parts, _frame(found, columns)])

    def _rows(self, lines: io.StringIO) -> Iterator[tuple[int, list[str]]]:
        rows, line = csv.reader(lines, delimiter=self.separator, strict=True), self.before + 1
        try:
            for cells in rows:
                if len(cells) > 1 or any(map(str.strip, cells)):
                    if len(cells) != len(self.names):
                        self._refuse_cells(line, len(cells))
                    yield line, cells
                line = rows.line_num + self.before + 1
        except csv.Error as error:
            if "new-line" in str(error):
                raise ValueError(
                    f"{self.path}: line {line} has a carriage return within a cell; remove it, or enclose the cell in "
                    "double quotes."
                ) from None
            raise ValueError(
                f"{self.path}: a double quote in the cells from line {line} on is not closed, or does not enclose a "
                "whole cell; enclose such a cell in quotes, and write the quote in it twice."
            ) from None

    def _without_blank_lines(self, frame: pl.DataFrame) -> pl.DataFrame:
        blank = self._lines().with_row_index("row").filter(pl.col(LINE).str.strip_chars() == "").select("row")
        self.blank = blank.collect(engine="streaming").to_series().to_list()
        frame = frame.filter(~pl.int_range(pl.len()).is_in(self.blank))
        if self.blank and self.blank[0] < frame.height:
            self._note("empty lines between others are left out.")
        return frame

    def _refuse_ragged_line(self) -> None:
        is_ragged = (pl.col(COUNT) != len(self.names) - 1) & (pl.col(LINE).str.strip_chars() != "")
        ragged = self._lines().with_row_index().filter(is_ragged).head(1)
        row, _, separators = ragged.collect(engine="streaming").row(0)
        self._refuse_cells(row + self.before + 1, separators + 1)

    def _note(self, sentence: str) -> None:
        if f"{self.path}: {sentence}" not in self.notes:
            self.notes.append(f"{self.path}: {sentence}")

    def _refuse_cells(self, line: int, cells: int) -> None:
        remedy = "was it cut? Complete it, or drop it."
        if cells > len(self.names):
            remedy = "enclose a cell that contains the separator in double quotes."
        raise ValueError(
            f"{self.path}: line {line} has {cells} cells, but there are {len(self.names)} columns; {remedy}"
        )


def _frame(rows: list[list[str | None]], columns: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, dict.fromkeys(columns, pl.String), orient="row")


def _without_enclosing_quotes(cells: pl.Series) -> pl.Series:
    inner = cells.str.extract('(?s)^"(.*)"$').str.replace_all('""', '"', literal=True)
    return inner.fill_null(cells)
