"""Collapse: levels that use hardly any of the codes that they could.

Shapes: N items, L levels.
"""

from __future__ import annotations

import numpy as np

LEAST_USE = 0.1  # of the codes of a level; k-means uses all, and a codebook below half of it is of little use


def collapsed(codes_NL: np.ndarray, level_sizes: list[int]) -> str:
    """Name the levels that use less than LEAST_USE of the codes that they could.

    Args:
        codes_NL: (N, L) codes of a catalogue.
        level_sizes: Codes of each level.

    Returns:
        As "level 0 uses 1 of 256 codes"; empty without any such level.
    """
    could = [min(size, len(codes_NL)) for size in level_sizes]
    used = [len(np.unique(codes_N)) for codes_N in codes_NL.T]
    fallen = [level for level in range(len(could)) if used[level] < LEAST_USE * could[level]]
    return ", ".join(f"level {level} uses {used[level]} of {could[level]} codes" for level in fallen)
