"""What a network is trained on: windows of the training sequences as arrays, the places it predicts, batches of them.

The windows are those of `llmrec sft`. Everything is computed for all windows at once and cut to batches afterwards, so
that a step costs the host a few slices.

Shapes: B rows, T items of the longest, W windows, S supervised places of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.data.windows import windows
from llmrec.runtime.device import from_host

BUCKET = 8  # batches whose windows are sorted by length together, so that little is padded


class Windows(NamedTuple):
    """Windows of the training sequences.

    Attributes:
        items: (W, T) int64 item rows, 0 at padding on the right.
        lengths: (W,) int64.
        num_context: (W,) int64 items at the start that an earlier window had as targets; at least 1.
    """

    items: np.ndarray
    lengths: np.ndarray
    num_context: np.ndarray


class Examples(NamedTuple):
    """What one epoch reads and predicts.

    Attributes:
        inputs: (W, T) int64 item rows, padded on the right.
        lengths: (W,) int64 of the inputs.
        supervised: (W, T) bool, whether the state at a place predicts; at least one of each row.
        targets: (W, T) int64 item rows that supervised places predict.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    supervised: np.ndarray
    targets: np.ndarray


class Batch(NamedTuple):
    """One step.

    Attributes:
        history: (B, T) int64 item rows, padded on the right.
        places: (S,) int64 supervised places in the flattened history.
        targets: (S,) int64 item rows.
    """

    history: Tensor
    places: Tensor
    targets: Tensor


def pad_right(histories: Sequence[np.ndarray], padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Histories as one array.

    Returns:
        (B, T) int64 item rows with `padding` after them, T at least 1; and (B,) int64 lengths.
    """
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    padded = np.full((len(histories), max(1, lengths.max(initial=0))), padding, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([np.empty(0, np.int64), *histories])
    return padded, lengths


def training_windows(sequences: Sequence[np.ndarray], max_history: int) -> Windows:
    """Windows of at most `max_history` + 1 items that together hold every item of a sequence but the first as a target.

    A sequence of one item has none.
    """
    found = [
        (sequence[start:end], max(1, first_target - start))
        for sequence in sequences
        for start, end, first_target in windows(len(sequence), max_history)
        if end - start > 1
    ]
    items, lengths = pad_right([window for window, _ in found])
    return Windows(items, lengths, np.array([context for _, context in found]))


def next_items(pieces: Windows) -> Examples:
    """Every item of a window is read but the last, and predicts the one after it unless that is context."""
    place = np.arange(1, pieces.items.shape[1])  # (T - 1,) of the target in its window
    supervised = (place >= pieces.num_context[:, None]) & (place < pieces.lengths[:, None])
    return Examples(pieces.items[:, :-1], pieces.lengths - 1, supervised, pieces.items[:, 1:])


def shuffled(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All rows in random batches of similar lengths, in random order."""
    order = rng.permutation(len(lengths))
    order = order[np.lexsort((lengths[order], np.arange(len(order)) // (BUCKET * batch_size)))]
    found = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [found[i] for i in rng.permutation(len(found))]


def batches(examples: Examples, rows: Sequence[np.ndarray], device: torch.device) -> Iterator[Batch]:
    """The examples of each array of rows, on a device, cut to the longest of them."""
    for chosen in rows:
        longest = examples.lengths[chosen].max()
        places = np.flatnonzero(examples.supervised[chosen, :longest])
        targets = examples.targets[chosen, :longest].ravel()[places]
        # Places are found here: a mask on a GPU would have the host wait for it in every step.
        yield Batch(*(from_host(array, device) for array in (examples.inputs[chosen, :longest], places, targets)))
