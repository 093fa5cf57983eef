"""Histories of different lengths as one run of positions, with little padding for attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from data import positions_of, to_device_together


@dataclass(frozen=True)
class Group:
    """Histories of like length: tokens `start` to `end` of the run, and their places in a padded (rows, tokens)."""

    start: int
    end: int
    rows: int
    tokens: int
    places: torch.Tensor


@dataclass(frozen=True)
class Packing:
    """A batch of histories, sorted by length.

    Attributes:
        row: (P,) history of each position, in numpy.
        place: (P,) its place in the history, in numpy.
        positions: (P S,) position of each token in its history, for S tokens an item.
        groups: At most two groups of histories, cut where the padding is least.
    """

    row: np.ndarray
    place: np.ndarray
    positions: torch.Tensor
    groups: list[Group]


def pack(lengths: np.ndarray, per_item: int) -> Packing:
    """Pack histories of `lengths` items, each of `per_item` tokens."""
    order = np.argsort(lengths, kind="stable")
    sorted_lengths, rows = lengths[order], len(order)
    padded = np.arange(1, rows + 1) * sorted_lengths + (rows - 1 - np.arange(rows)) * sorted_lengths[-1]
    cut, end = int(padded.argmin()) + 1, np.cumsum(sorted_lengths)
    local, place = positions_of(sorted_lengths)
    bounds, places = [], []
    for first, last in ((0, cut), (cut, rows)):
        if first == last:
            continue
        start, stop = (end[first - 1] if first else 0), end[last - 1]
        tokens = int(sorted_lengths[last - 1]) * per_item
        at = (local[start:stop] - first) * tokens + place[start:stop] * per_item
        places.append((at[:, None] + np.arange(per_item)).reshape(-1))
        bounds.append((int(start * per_item), int(stop * per_item), last - first, tokens))
    positions = (place[:, None] * per_item + np.arange(per_item)).reshape(-1)
    *on_device, positions_on_device = to_device_together(*places, positions)
    groups = [Group(*bound, at) for bound, at in zip(bounds, on_device, strict=True)]
    return Packing(order[local], place, positions_on_device, groups)
