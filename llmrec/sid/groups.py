"""Items that share a SID, found by one sort.

Shapes: N items, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.sid.bounds import EMPTY


def buckets(codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort items into buckets of equal codes.

    If they fit, a semantic ID and its item row become one integer, and integers sort fast: on one core 10^7 items of
    three levels of 256 codes take .7 s, against 6.8 s by a sort level by level.

    Args:
        codes_NL: (N, L) integers, -1 beyond the end of a semantic ID; L may be 0.

    Returns:
        (N,) item rows, ordered by codes and within a bucket by row; (n,) start and (n,) number of items of each bucket.
    """
    sizes, row_bits = [int(largest) + 2 for largest in codes_NL.max(axis=0)], len(codes_NL).bit_length()
    if math.prod(sizes) << row_bits < 2**63:
        key_N = np.zeros(len(codes_NL), np.int64)
        for size, codes_N in zip(sizes, codes_NL.T, strict=True):
            key_N = key_N * size + codes_N + 1
        key_N = key_N << row_bits | np.arange(len(codes_NL))
        key_N.sort()
        order_N, key_N = key_N & ((1 << row_bits) - 1), key_N >> row_bits
        differs_N = key_N[1:] != key_N[:-1]
    else:
        order_N = np.lexsort(codes_NL.T[::-1])
        sorted_NL = codes_NL[order_N]
        differs_N = (sorted_NL[1:] != sorted_NL[:-1]).any(axis=1)
    starts = np.flatnonzero(np.append(True, differs_N))
    return order_N, starts, np.diff(starts, append=len(codes_NL))


@dataclass(frozen=True)
class SortedCodes:
    """Semantic IDs in the order of their codes, where one of them is found without a look-up table.

    Attributes:
        order_N: (N,) positions of the semantic IDs.
        codes_LN: (L, N) their codes in this order.
    """

    order_N: np.ndarray
    codes_LN: np.ndarray

    @classmethod
    def of(cls, codes_NL: np.ndarray) -> SortedCodes:
        """Sort semantic IDs, (N, L) int64 with -1 beyond their ends."""
        order_N = buckets(codes_NL)[0]
        return cls(order_N, np.stack([codes_N[order_N] for codes_N in codes_NL.T]))

    def find(self, codes: Sequence[int]) -> np.ndarray:
        """Find the ascending positions of the semantic IDs that have exactly these codes."""
        begin, end, num_levels = 0, len(self.order_N), len(self.codes_LN)
        if len(codes) > num_levels:
            return self.order_N[:0]
        for codes_N, code in zip(self.codes_LN, [*codes, *[EMPTY] * (num_levels - len(codes))], strict=True):
            begin, end = (begin + int(np.searchsorted(codes_N[begin:end], code, side)) for side in ("left", "right"))
        return self.order_N[begin:end]


def num_collisions(codes_NL: np.ndarray) -> int:
    """Count the items less the distinct semantic IDs."""
    return len(codes_NL) - len(buckets(codes_NL)[1])


def ordinals(codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the items that share a SID, in the order of rows: (N,) ordinals, and (N,) sizes of their buckets."""
    order_N, starts, counts = buckets(codes_NL)
    ordinal_N, sharing_N = np.empty((2, len(codes_NL)), np.int64)
    ordinal_N[order_N] = np.arange(len(codes_NL)) - np.repeat(starts, counts)
    sharing_N[order_N] = np.repeat(counts, counts)
    return ordinal_N, sharing_N


def entropy_bits(counts: np.ndarray) -> float:
    """Compute the plug-in entropy of a histogram, in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())
