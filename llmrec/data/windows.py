"""Windows of long sequences; the LLM and the baselines are trained on the same ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def windows(length: int, max_history: int) -> Iterator[tuple[int, int, int]]:
    """Yield windows of at most `max_history` + 1 items in which each item is a target once.

    Args:
        length: Number of items in the sequence.
        max_history: Largest number of items before a target.

    Yields:
        (start, end, first_target): the window is [start, end), its targets are [first_target, end). After the first
        window, every target has at least half of `max_history` before it.
    """
    size, stride = max_history + 1, max_history // 2 + 1
    end = min(size, length)
    yield 0, end, 0
    while end < length:
        first_target, end = end, min(end + stride, length)
        yield max(0, end - size), end, first_target


def all_windows(lengths: np.ndarray, max_history: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows of many sequences, one after another.

    Args:
        lengths: (S,) number of items of each sequence.
        max_history: Largest number of items before a target.

    Returns:
        (W,) int64 sequence, start, end and first target of each window, as `windows` yields the last three.
    """
    size, stride = max_history + 1, max_history // 2 + 1
    counts = 1 + -(-np.maximum(lengths - size, 0) // stride)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    length = lengths[sequence]
    end = np.minimum(size + place * stride, length)
    first_target = np.where(place == 0, 0, np.minimum(size + (place - 1) * stride, length))
    return sequence, np.maximum(0, end - size), end, first_target
