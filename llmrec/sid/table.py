"""SidTable: the semantic IDs of a catalogue, item row <-> codes.

Usually there is one SID per item and one item per SID. Several items may share a SID (collision policy `accept`,
published tables), and an item may have several SIDs, numbered by `alias`. SIDs may differ in length. The table is
prefix-free, so that a SID is complete exactly at the leaves of the trie: a SID that is a prefix of another one gets a
terminal code.

Shapes: S SIDs, N items, L levels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import columns
from llmrec.data.requests.item_lists import find_rows
from llmrec.runtime.reading import reading
from llmrec.sid.bounds import LARGEST, MOST_LEVELS, check_parquet
from llmrec.sid.groups import buckets, ordinals

FILE = "sid_table.parquet"
EMPTY = -1  # code in the levels beyond a SID's length


class SidTable:
    """Semantic IDs of a catalogue.

    Args:
        item_ids: N distinct external ids in catalogue order; their positions are the item rows.
        codes: (S, L) integers from 0; -1 fills the levels beyond a SID's length.
        item_rows: (S,) item row of each SID; row i of `codes` belongs to item i when left out.
        level_sizes: Number of codes of each level; one more than the largest code when left out.

    Attributes:
        all_codes: (S, L) int64 codes, sorted by item row.
        item_rows: (S,) int64 item row of each SID, ascending.
        lengths: (S,) int64 number of codes of each SID.
        first: (N,) int64 position of the first SID of each item.
        level_sizes: Number of codes of each level, terminal codes included.

    Raises:
        ValueError: If an item has no SID, a code is outside its level, or a code follows the end of a SID.

    Examples:
        >>> from llmrec import SidTable
        >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]])
        >>> table.num_items, table.num_levels, table.level_sizes
        (3, 2, [2, 3])

        A SID that is a prefix of another one gets a terminal code, here 3 at level 1:

        >>> SidTable(["red", "green"], [[0, -1], [0, 2]]).all_codes.tolist()
        [[0, 3], [0, 2]]
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray | Sequence[Sequence[int]],
        item_rows: np.ndarray | Sequence[int] | None = None,
        level_sizes: Sequence[int] | None = None,
    ):
        self.item_ids = list(item_ids)
        codes = np.atleast_2d(np.asarray(codes, dtype=np.int64))
        rows = np.arange(len(codes)) if item_rows is None else np.asarray(item_rows, dtype=np.int64)
        _check_codes(self.item_ids, codes, rows)
        sizes = list(level_sizes) if level_sizes is not None else (codes.max(axis=0) + 1).tolist()
        if not 0 < codes.shape[1] == len(sizes) <= MOST_LEVELS or max(sizes) > LARGEST:
            raise ValueError(
                f"SIDs of {codes.shape[1]} levels were given with {len(sizes)} level_sizes, the largest "
                f"{max(sizes, default=0)}; there are 1 to {MOST_LEVELS} levels, of at most {LARGEST} codes."
            )
        codes, sizes = _make_prefix_free(codes, [int(size) for size in sizes])
        used = max(level + 1 for level, size in enumerate(sizes) if size)  # a level without a code is none
        codes, self.level_sizes = codes[:, :used], sizes[:used]
        too_large = np.argwhere(codes >= np.asarray(self.level_sizes))
        if len(too_large):
            sid, level = too_large[0]
            raise ValueError(
                f"item '{self.item_ids[rows[sid]]}' has code {codes[sid, level]} at level {level}, which has "
                f"{self.level_sizes[level]} codes."
            )
        order = np.argsort(rows, kind="stable")
        self.all_codes, self.item_rows = codes[order], rows[order]
        self.lengths = (self.all_codes != EMPTY).sum(axis=1)
        self.first = np.searchsorted(self.item_rows, np.arange(len(self.item_ids)))

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue, N."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Number of codes of the longest SID, L."""
        return self.all_codes.shape[1]

    def codes(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Look up the first SID of items.

        Args:
            rows: (n,) item rows.

        Returns:
            (n, L) int64 codes, -1 beyond a SID's length.

        Raises:
            IndexError: If an item row is outside the catalogue.

        Examples:
            >>> from llmrec import SidTable
            >>> SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]).codes([2, 0]).tolist()
            [[0, 2], [0, 1]]
        """
        return self.all_codes[self.first[np.asarray(rows, dtype=np.int64)]]

    def rows(self, codes: Sequence[int]) -> np.ndarray:
        """Look up the items that own a SID.

        Args:
            codes: Codes of the SID, without its -1 filling.

        Returns:
            (n,) int64 item rows, ascending; empty for an unknown SID.

        Examples:
            >>> from llmrec import SidTable
            >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 1]])  # red and blue share a SID
            >>> table.rows([0, 1]).tolist(), table.rows([1, 1]).tolist()
            ([0, 2], [])
        """
        return self._rows_of.get(tuple(int(code) for code in codes), np.empty(0, np.int64))

    def find_items(self, lists: Mapping[str, Sequence[str]]) -> list[np.ndarray]:
        """Convert lists of external ids to item rows.

        Args:
            lists: Maps a name for messages to a list of item_ids.

        Returns:
            (n,) int64 item rows of each list of n item_ids.

        Raises:
            ValueError: If a value is not a list of text, or it names unknown items; with the first ten such lists.

        Examples:
            >>> from llmrec import SidTable
            >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]])
            >>> [rows.tolist() for rows in table.find_items({"history": ["blue", "red"]})]
            [[2, 0]]
        """
        return [rows for rows, _ in find_rows(lists, self.row_of)]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item row of each external id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _rows_of(self) -> dict[tuple[int, ...], np.ndarray]:
        owners: dict[tuple[int, ...], list[int]] = {}
        for codes, length, row in zip(self.all_codes.tolist(), self.lengths, self.item_rows.tolist(), strict=True):
            owners.setdefault(tuple(codes[:length]), []).append(row)
        return {sid: np.asarray(rows) for sid, rows in owners.items()}

    @cached_property
    def sids_per_item(self) -> np.ndarray | None:
        """(N,) int64 number of SIDs of each item; None if every item has one."""
        counts = np.bincount(self.item_rows, minlength=self.num_items)
        return counts if counts.max(initial=1) > 1 else None

    @cached_property
    def bucket_sizes(self) -> np.ndarray:
        """(N,) int64 number of items that share each item's first SID, the item included."""
        return ordinals(self.codes(np.arange(self.num_items)))[1]

    @cached_property
    def sha256(self) -> str:
        """Hash of item ids, codes and level sizes; a checkpoint has it, to refuse another table."""
        lines = "\n".join(self.item_ids).encode()
        if any("\n" in item_id for item_id in self.item_ids):  # no text begins with this byte
            lines = b"\xff" + json.dumps(self.item_ids).encode()
        digest = hashlib.sha256(lines)
        for array in (self.all_codes, self.item_rows, np.asarray(self.level_sizes)):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write `sid_table.parquet` (item_id, alias, length, code_0 …) into a directory.

        Args:
            directory: Existing directory.
        """
        data = {
            columns.ITEM_ID: [self.item_ids[row] for row in self.item_rows],
            columns.ALIAS: np.arange(len(self.item_rows)) - self.first[self.item_rows],
            columns.LENGTH: self.lengths,
            **{columns.code(level): self.all_codes[:, level] for level in range(self.num_levels)},
        }
        metadata = {"level_sizes": ",".join(map(str, self.level_sizes))}
        pq.write_table(pa.table(data).replace_schema_metadata(metadata), Path(directory) / FILE)

    @classmethod
    def load(cls, path: str | Path) -> SidTable:
        """Read `sid_table.parquet`.

        Args:
            path: The file, or the directory that holds it.

        Raises:
            ValueError: If the file is absent, unreadable, or lacks a column.

        Examples:
            >>> import tempfile
            >>> from llmrec import SidTable
            >>> table = SidTable(["red", "green"], [[0, 1], [1, 0]])
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     table.save(directory)
            ...     SidTable.load(directory).sha256 == table.sha256
            True
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise ValueError(f"'{path}' does not exist; `llmrec tokenize` writes it.")
        with reading(path, "a parquet file", "run `llmrec tokenize` again"):
            check_parquet(path)
            table = pq.read_table(path, partitioning=None)
        levels = [columns.code(level) for level in range(sum(n.startswith("code_") for n in table.column_names))]
        needed = [columns.ITEM_ID, *levels]
        if not levels or any(table.column_names.count(name) != 1 for name in needed):
            raise ValueError(f"'{path}' needs the columns item_id and code_0 …, once; it has {table.column_names}.")
        if not pa.types.is_string(table[columns.ITEM_ID].type) or table[columns.ITEM_ID].null_count:
            raise ValueError(f"'{path}' has item_ids that are no text, or empty. Run `llmrec tokenize` again.")
        for name in levels:
            if not pa.types.is_integer(table[name].type) or table[name].null_count:
                raise ValueError(
                    f"'{path}' has {table[name].type} with {table[name].null_count} empty cells in {name}; codes are "
                    "integers, and -1 beyond the end of a SID. Run `llmrec tokenize` again."
                )
        item_ids = table[columns.ITEM_ID].to_pylist()
        unique = list(dict.fromkeys(item_ids))
        row_of = {item_id: row for row, item_id in enumerate(unique)}
        codes = np.stack([table[columns.code(level)].to_numpy() for level in range(len(levels))], axis=1)
        sizes = (table.schema.metadata or {}).get(b"level_sizes")
        rows = np.asarray([row_of[item_id] for item_id in item_ids])
        try:
            return cls(unique, codes, rows, [int(size) for size in sizes.decode().split(",")] if sizes else None)
        except ValueError as error:
            raise ValueError(f"'{path}' holds no SIDs: {error} Run `llmrec tokenize` again.") from error


def _check_codes(item_ids: list[str], codes: np.ndarray, rows: np.ndarray) -> None:
    if len(codes) != len(rows):
        raise ValueError(f"{len(codes)} SIDs were given for {len(rows)} item rows.")
    if len(set(item_ids)) < len(item_ids):
        raise ValueError("item_ids of a SidTable must be unique.")
    without = np.setdiff1d(np.arange(len(item_ids)), rows)
    if len(without):
        raise ValueError(f"{len(without)} items have no SID; first: '{item_ids[without[0]]}'.")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(item_ids)):
        raise ValueError(f"item rows must lie in [0, {len(item_ids)}); found {rows.min()} … {rows.max()}.")
    if codes.size and codes.max() > LARGEST:
        raise ValueError(f"a SID has the code {codes.max()}; the largest is {LARGEST}.")
    filled = codes != EMPTY
    bad = np.flatnonzero((codes < EMPTY).any(axis=1) | ~filled[:, 0] | (filled[:, 1:] & ~filled[:, :-1]).any(axis=1))
    if len(bad):
        raise ValueError(
            f"item '{item_ids[rows[bad[0]]]}' has the codes {codes[bad[0]].tolist()}; -1 may only end a SID."
        )


def _make_prefix_free(codes: np.ndarray, level_sizes: list[int]) -> tuple[np.ndarray, list[int]]:
    """Give each SID that is a proper prefix of another one a terminal code, one past the codes of the next level."""
    lengths = (codes != EMPTY).sum(axis=1)
    if (lengths == codes.shape[1]).all():
        return codes, level_sizes
    order, starts, counts = buckets(codes)
    distinct = codes[order[starts]]
    # Sorted, with -1 before every code, a SID stands right before the first of those that it is a prefix of.
    goes_on = ((distinct[:-1] == distinct[1:]) | (distinct[:-1] == EMPTY)).all(axis=1)
    is_prefix = np.empty(len(codes), bool)
    is_prefix[order] = np.repeat(np.append(goes_on, False), counts)
    codes, sizes = codes.copy(), list(level_sizes)
    for level in np.unique(lengths[is_prefix]):
        codes[is_prefix & (lengths == level), level] = level_sizes[level]
        sizes[level] = level_sizes[level] + 1
    return codes, sizes
