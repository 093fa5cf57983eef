"""Queries to a teacher: places in training sequences at which it says how likely each item is to come next.

A teacher answers many places of a sequence at once, since `llmrec sft` asks at every place of its windows. A ranker
that is asked about histories answers one place of each; `queries_of` makes the one from the other.

Shapes: S windows, H places of a window, Q queries, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from llmrec.runtime.device import from_host


class Queries(NamedTuple):
    """Places of windows of training sequences at which the next item is asked for.

    Attributes:
        items: (S, H) int64 item rows, padded on the right with 0.
        sequence: (Q,) int64 window of each query.
        length: (Q,) int64 number of items of the window before the answer, 0 to H.
        user: (S,) int64 training sequence of each window, its place in `Catalog.train`; -1 if it is none of these.
        start: (S,) int64 place of the window's first item in that sequence.
    """

    items: Tensor
    sequence: Tensor
    length: Tensor
    user: Tensor
    start: Tensor


class Teacher(Protocol):
    """A fitted ranker that `llmrec sft` learns from."""

    @property
    def exclude_seen(self) -> bool:
        """True if the ranker was better on valid examples without the items of the history."""

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
        """Probability of every item to be the answer to each query.

        Args:
            queries: Q places, on the teacher's device.
            exclude_seen: Give no probability to the items of the window before the answer.
            temperature: Divides the logarithms of the probabilities; above 1 they are more even.

        Returns:
            (Q, N) float32; every row sums to 1.
        """


def queries_of(histories: Sequence[np.ndarray], device: torch.device) -> Queries:
    """Ask for the item after each of Q histories of item rows, which are windows of no training sequence."""
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    items = np.zeros((len(histories), max(1, lengths.max(initial=0))), dtype=np.int64)
    items[np.arange(items.shape[1]) < lengths[:, None]] = np.concatenate([np.empty(0, np.int64), *histories])
    none, zero = np.full(len(histories), -1), np.zeros(len(histories), dtype=np.int64)
    arrays = (items, np.arange(len(histories)), lengths, none, zero)
    return Queries(*(from_host(array, device) for array in arrays))


def normalised(logits: Tensor, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
    """Turn logits into the probabilities that `Teacher` promises.

    Args:
        logits: (Q, N), finite.
        queries: Q places.
        exclude_seen: As in `Teacher.probabilities`.
        temperature: As in `Teacher.probabilities`.
    """
    scaled = logits.float() / temperature
    return (without_seen(scaled, queries, -torch.inf) if exclude_seen else scaled).softmax(dim=1)


def in_proportion(shares: Tensor, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
    """Turn (Q, N) positive shares into the probabilities that `Teacher` promises; arguments as for `normalised`."""
    if temperature != 1:
        shares = shares ** (1 / temperature)
    if exclude_seen:
        shares = without_seen(shares, queries, 0.0)
    return shares / shares.sum(dim=1, keepdim=True)


def without_seen(values: Tensor, queries: Queries, nothing: float) -> Tensor:
    """Set the (Q, N) values of the items before the answer to `nothing`, unless no item would be left."""
    num_items, most_items = values.shape[1], queries.items.shape[1]
    items, real = before(queries)
    # A place without an item repeats the first one of its window, which is among the items before the answer. Without
    # any item before the answer it gets its own value back.
    items = torch.where(real, items, items[:, :1])
    masked = values.scatter(1, items, torch.where(queries.length[:, None] > 0, nothing, values.gather(1, items)))
    if most_items < num_items:  # then some item is left
        return masked
    return torch.where((masked == nothing).all(dim=1, keepdim=True), values, masked)


def before(queries: Queries) -> tuple[Tensor, Tensor]:
    """The items before the answer to each query.

    Returns:
        (Q, H) int64 item rows of its whole window, and (Q, H) bool, True at the items before the answer.
    """
    items = queries.items[queries.sequence]
    return items, torch.arange(items.shape[1], device=items.device) < queries.length[:, None]


def popularity(counts: np.ndarray, device: torch.device) -> Tensor:
    """(N,) float32 logarithm of the training interactions of each item plus one: the logits after an empty history."""
    return torch.from_numpy(counts).float().log1p().to(device)
