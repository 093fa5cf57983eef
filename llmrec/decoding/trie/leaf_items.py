"""LeafItems: the items that own the leaves of a trie, and the leaves of each item.

Usually there is one each way. Several items may share a leaf, and an item may have several leaves (aliases); an entry
is one such pair. The arrays stay on the host: a search needs no items, and its answers are read there.

Shapes: E entries, U leaves, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class LeafItems:
    """Items of each leaf.

    Attributes:
        rows: (E,) item rows in the order of the leaves, ascending within a leaf.
        starts: (U + 1,) begin of each leaf's part of `rows`; None if every leaf has one item.
        num_items: N; not all items need a leaf.
    """

    rows: np.ndarray
    starts: np.ndarray | None
    num_items: int

    @property
    def num_leaves(self) -> int:
        """Number of leaves, U."""
        return len(self.rows) if self.starts is None else len(self.starts) - 1

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays, on the host."""
        return self.rows.nbytes + (0 if self.starts is None else self.starts.nbytes)

    def of(self, rank: int) -> np.ndarray:
        """Item rows of a leaf, ascending."""
        begin, end = (rank, rank + 1) if self.starts is None else self.starts[rank : rank + 2]
        return self.rows[begin:end]

    def num_entries(self, leaves: np.ndarray) -> np.ndarray:
        """Count the entries of each leaf."""
        return np.ones_like(leaves) if self.starts is None else self.starts[leaves + 1] - self.starts[leaves]

    @cached_property
    def leaves(self) -> tuple[np.ndarray, np.ndarray]:
        """The inverse: (N + 1,) begin of each item's part of (E,) leaf ranks, ascending within an item."""
        ranks = np.arange(self.num_leaves)
        ranks = ranks if self.starts is None else ranks.repeat(np.diff(self.starts))
        bits = (self.num_leaves - 1).bit_length()
        pairs = (self.rows.astype(np.int64) << bits) | ranks  # sorting values is faster than sorting positions
        pairs.sort()
        starts = np.append(0, np.bincount(self.rows, minlength=self.num_items).cumsum())
        return starts, (pairs & ((1 << bits) - 1)).astype(np.int32)

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the leaves of (T,) item rows: positions in `rows` and leaf ranks, a pair for each SID of each item."""
        starts, leaves = self.leaves
        begin, end = starts[rows], starts[1:][rows]
        position, place = ragged(begin, end - begin)
        return position, leaves[place]

    def is_among(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(E,) bool, True for entries whose item is one of `rows`.

        Raises:
            ValueError: If a row is outside the catalogue.
        """
        is_given = np.zeros(self.num_items, dtype=bool)
        is_given[check_rows(rows, self.num_items)] = True
        return is_given[self.rows]

    def select(self, is_kept: np.ndarray) -> tuple[LeafItems, np.ndarray]:
        """Keep some of the (E,) entries; returns the items left and the (U,) leaves that keep any."""
        if self.starts is None:
            return LeafItems(self.rows[is_kept], None, self.num_items), is_kept
        counts = np.add.reduceat(is_kept, self.starts[:-1], dtype=np.int32)
        starts = np.append(0, counts[counts > 0].cumsum(dtype=np.int64)).astype(self.starts.dtype)
        rows = self.rows[is_kept]
        return LeafItems(rows, starts if len(starts) <= len(rows) else None, self.num_items), counts > 0


def ragged(begin: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put several ranges one after another: (T,) range of each entry, and (T,) the entries begin, begin + 1, …"""
    owner = np.arange(len(counts)).repeat(counts)
    return owner, np.arange(len(owner)) + (begin - (counts.cumsum() - counts))[owner]


def check_rows(rows: Sequence[int] | np.ndarray, num_items: int) -> np.ndarray:
    """Convert item rows to an array.

    Raises:
        ValueError: If one is outside the catalogue.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < num_items:
        raise ValueError(f"item rows must lie in [0, {num_items}); found {rows.min()} … {rows.max()}.")
    return rows
