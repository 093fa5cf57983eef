"""Windows of long sequences; the LLM and the baselines are trained on the same ones."""

from __future__ import annotations

import numpy as np


def windows(lengths: np.ndarray, max_history: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows of at most `max_history` + 1 items, in which each item of each sequence is a target once.

    Args:
        lengths: (S,) number of items of each sequence; one without items has an empty window.
        max_history: Largest number of items before a target.

    Returns:
        (W,) int64 sequence, start, end and first_target of each window, sequence after sequence: it is [start, end),
        its targets are [first_target, end). After the first window of a sequence, every target has at least half of
        `max_history` before it.

    >>> for column in windows(np.array([5, 12]), 4):
    ...     print(column.tolist())
    [0, 1, 1, 1, 1]
    [0, 0, 3, 6, 7]
    [5, 5, 8, 11, 12]
    [0, 0, 5, 8, 11]
    """
    size, stride = max_history + 1, max_history // 2 + 1
    counts = 1 + -(-np.maximum(lengths - size, 0) // stride)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    length = lengths[sequence]
    end = np.minimum(size + place * stride, length)
    first_target = np.where(place == 0, 0, np.minimum(size + (place - 1) * stride, length))
    return sequence, np.maximum(0, end - size), end, first_target
