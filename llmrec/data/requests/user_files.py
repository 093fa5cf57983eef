"""Parquet files of users, read forwards in parts, however large the files and their row groups are."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.intake.files.content import PARQUET, check_kind, endings
from llmrec.data.requests.item_lists import shown
from llmrec.data.requests.user_table import check_columns
from llmrec.runtime.reading import reading

BATCH = 8192  # rows that are decoded together
BUFFER = 1 << 20  # bytes of a column that are read ahead; without a limit a whole row group would be
REMEDY = "write it again"


class RowGroup(NamedTuple):
    """Row group of a file; `first` is the number of users before it, and `row` its first row in the file."""

    first: int
    path: Path
    number: int
    row: int


@dataclass(frozen=True)
class UserFiles:
    """Files as one table of users, in the order of their names.

    Attributes:
        num_users: Rows of all files.
        groups: Row groups of all files.
        schema: Columns of every file.
    """

    num_users: int
    groups: list[RowGroup]
    schema: pa.Schema

    @classmethod
    def find(cls, source: str | Path) -> UserFiles:
        """Read the footers of a parquet file, or of those in a directory.

        Raises:
            ValueError: If there is none, one cannot be read, its columns are not those of requests or differ from those
                of the first, or there is no user.
        """
        groups: list[RowGroup] = []
        schema, count = None, 0
        paths = _paths(Path(source))
        for path in paths:
            check_kind(path)
            with reading(path, "a parquet file", REMEDY), pq.ParquetFile(path) as file:
                own, meta = file.schema_arrow.remove_metadata(), file.metadata
                _ = own.names  # which pyarrow decodes only now
            try:
                check_columns(own)
            except ValueError as error:
                raise ValueError(f"users '{path}' {error}.") from None
            schema = own if schema is None else schema
            if not own.equals(schema):
                raise ValueError(f"users '{path}' {_difference(schema, own)} as '{paths[0]}'; write them alike.")
            row = 0
            for number in range(meta.num_row_groups):
                groups.append(RowGroup(count, path, number, row))
                row, count = row + meta.row_group(number).num_rows, count + meta.row_group(number).num_rows
        if schema is None or not count:
            raise ValueError(f"users '{source}': no request in it; give one user per row.")
        return cls(count, groups, schema)

    def place(self, user: int) -> str:
        """Name of a user for messages: file and row."""
        group = self.groups[self._group_of(user)]
        return f"{group.path}, row {user - group.first + group.row + 1}"

    def read(self, parts: Iterable[range]) -> Iterator[tuple[range, pa.Table]]:
        """Read parts, each behind the one before it; row groups without any user of them are not read.

        Args:
            parts: Positions of users; a part is asked for when the one before it has been used.

        Yields:
            Each part, and its rows.

        Raises:
            ValueError: If a file cannot be read.
        """
        batches, held, at = self._batches(0), self.schema.empty_table(), 0  # `at`: user in the first row of `held`
        for part in parts:
            group = self._group_of(part.start)
            if group > self._group_of(at + held.num_rows):
                batches, held, at = self._batches(group), self.schema.empty_table(), self.groups[group].first
            while at + held.num_rows < part.stop:
                more = pa.Table.from_batches([next(batches)])
                drop = min(max(0, part.start - at), held.num_rows)
                held, at = pa.concat_tables([held.slice(drop), more]), at + drop
            yield part, held.slice(part.start - at, len(part))
            held, at = held.slice(part.stop - at), part.stop

    def _batches(self, first: int) -> Iterator[pa.RecordBatch]:
        """Record batches of the row groups from the first on."""
        for group in self.groups[first:]:
            with reading(group.path, "a parquet file", REMEDY):
                file = pq.ParquetFile(group.path, buffer_size=BUFFER, pre_buffer=False)
            with file:
                batches = file.iter_batches(BATCH, row_groups=[group.number])
                while True:
                    with reading(group.path, "a parquet file", REMEDY):
                        batch = next(batches, None)
                        if batch is None:
                            break
                        batch.validate(full=True)  # text that is no UTF-8
                    yield batch

    def _group_of(self, user: int) -> int:
        return bisect.bisect_right(self.groups, user, key=lambda group: group.first) - 1


def _paths(source: Path) -> list[Path]:
    """The parquet files that a path names, in order."""
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if endings(path)[0] in PARQUET and path.is_file())
        if not found:
            raise ValueError(f"users '{source}' is a directory without a .parquet file; give one that has some.")
        return found
    if not source.is_file():
        raise ValueError(f"users '{source}' does not exist; give a parquet file with one user per row.")
    if endings(source)[0] not in PARQUET:
        raise ValueError(
            f"users '{source}' is no .parquet file; write it as parquet, or give it as --input, which takes JSON lines."
        )
    return [source]


def _difference(expected: pa.Schema, found: pa.Schema) -> str:
    """First column in which two files differ."""
    if expected.names != found.names:
        name = next((name for name in expected.names if name not in found.names), None)
        other = next((name for name in found.names if name not in expected.names), None)
        return f"has no column {shown(name)}" if name else f"has a column {shown(other)}, or another order of columns,"
    name = next(name for name in expected.names if expected.field(name) != found.field(name))
    return f"has {shown(name)} of type {found.field(name).type}, not {expected.field(name).type}"
