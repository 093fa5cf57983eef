"""Entries of ragged lists of item rows, and sparse matrices made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def flat(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of ragged lists of item rows: number of the list, item row, number of later entries in the list."""
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    owner = np.repeat(np.arange(len(lists)), lengths)
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())
    return owner, np.concatenate([np.empty(0, np.int64), *lists]), age


def matrix(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Sparse matrix of `shape`; values at the same place are added."""
    return sparse.coo_array((np.asarray(values, dtype=np.float64), (rows, cols)), shape=shape).tocsr()


def place_of(sorted_owners: np.ndarray) -> np.ndarray:
    """0-based place of each entry among the entries of its owner; owners ascend."""
    return np.arange(len(sorted_owners)) - np.searchsorted(sorted_owners, sorted_owners)


def largest(
    rows: np.ndarray, cols: np.ndarray, values: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the `count` largest values of each row, of equal ones those of the first columns; rows ascend."""
    best = np.lexsort((cols, -values, rows))
    best = best[place_of(rows[best]) < count]
    return rows[best], cols[best], values[best]
