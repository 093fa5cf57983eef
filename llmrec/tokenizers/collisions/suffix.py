"""The suffix: one more code that tells apart the items that share all others.

Shapes: N items, L levels.
"""

from __future__ import annotations

import numpy as np

from llmrec.sid.groups import buckets
from llmrec.sid.table import EMPTY


def add_suffix(
    codes_NL: np.ndarray,
    ordinal_N: np.ndarray,
    level_sizes: list[int],
    suffix_size: int,
    chosen_N: np.ndarray | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Give items their ordinal among the items with the same codes as one more code.

    Where semantic IDs differ in length, the suffix of a short one stands at a level that has codes of its own. It then
    lies behind these codes, as the terminal code of `SidTable` does, so that a suffix is never taken for a code.

    Args:
        codes_NL: (N, L) int64, -1 beyond the end of a semantic ID.
        ordinal_N: (N,) of `ordinals`.
        level_sizes: Codes of each level.
        suffix_size: Least number of codes of the new level.
        chosen_N: (N,) bool, who gets a suffix: with an item, all that share its codes. Everyone, when left out.

    Returns:
        (N, L + 1) int64 codes, or (N, L) where no item needs the new level; their level sizes, larger than those given
        where more items share all codes than a level has room for.
    """
    num_levels = codes_NL.shape[1]
    chosen_N = np.ones(len(codes_NL), bool) if chosen_N is None else chosen_N
    length_N = (codes_NL != EMPTY).sum(axis=1)
    codes, sizes = np.column_stack([codes_NL, np.full(len(codes_NL), EMPTY)]), [*level_sizes, suffix_size]
    for level in np.flatnonzero(np.bincount(length_N[chosen_N])):
        rows, first = np.flatnonzero(chosen_N & (length_N == level)), 0 if level == num_levels else level_sizes[level]
        codes[rows, level] = first + ordinal_N[rows]
        sizes[level] = max(sizes[level], first + int(ordinal_N[rows].max()) + 1)
    if (codes[:, -1] == EMPTY).all():
        return codes[:, :-1], sizes[:-1]
    return codes, sizes


def least_free(codes_NL: np.ndarray, suffix_N: np.ndarray) -> np.ndarray:
    """Suffixes for the items that have none yet; those that have one keep it.

    Args:
        codes_NL: (N, L) int64.
        suffix_N: (N,) int64, distinct among the items with equal codes; -1 for an item that needs one.

    Returns:
        (N,) int64. In the order of rows each item has got the least number that no item with its codes has.
    """
    found_N, (order_N, starts, counts) = suffix_N.copy(), buckets(codes_NL)
    needs = np.logical_or.reduceat(suffix_N[order_N] == EMPTY, starts)
    for start, count in zip(starts[needs], counts[needs], strict=True):
        rows = order_N[start : start + count]
        waiting = rows[suffix_N[rows] == EMPTY]
        found_N[waiting] = np.setdiff1d(np.arange(count), suffix_N[rows])[: len(waiting)]
    return found_N
