"""The trainer of every neural baseline: softmax cross-entropy over all items at each position, best epoch kept.

The targets are those of `llmrec sft`: the same windows, each item of a training sequence once, but not the first, which
nothing precedes. An epoch is judged by a function of the caller's, and the weights of the best one are kept.

Shapes: B windows, T items of the longest less one, S supervised positions, D hidden, N items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmrec.console import progress
from llmrec.evaluation.neural.network import Network, pad_right
from llmrec.training.examples import windows

BUCKET = 8  # batches whose windows are sorted by length together, so that little is padded
LEAST_STEPS = 32  # of an epoch: with fewer, as on a toy, patience ends training before anything is learned


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        learning_rate: Of AdamW, constant.
        batch_size: Windows of a step; fewer where an epoch would have less than LEAST_STEPS steps.
        weight_decay: Of AdamW.
        max_epochs: Passes over the training sequences, at most.
        patience: Epochs without a better one after which training stops.
    """

    learning_rate: float = 1e-3  # SASRec, "Implementation Details", of Adam
    batch_size: int = 128  # likewise
    weight_decay: float = 0.01  # torch's default of AdamW; the papers decay nothing
    max_epochs: int = 200  # SASRec's code
    patience: int = 10  # RecBole's stopping_step


class Epoch(NamedTuple):
    """One line of a training log.

    Attributes:
        loss: Mean over the supervised positions.
        quality: What the caller's function said afterwards, larger is better.
        supervised: Items trained on so far, counted as often as they were.
        seconds: Wall time so far, judging included.
    """

    loss: float
    quality: float
    supervised: int
    seconds: float


class Window(NamedTuple):
    """Items of one window, and how many of them at its start are no targets."""

    items: np.ndarray
    num_context: int


def train(
    network: Network,
    sequences: Sequence[np.ndarray],
    max_history: int,
    quality: Callable[[], float],
    training: Training,
    seed: int,
    name: str,
) -> list[Epoch]:
    """Train a network and leave it in evaluation mode with the weights of its best epoch.

    Args:
        network: On its device.
        sequences: Item rows of each user, oldest first; at least one has two items.
        max_history: Largest number of items before a target.
        quality: Judges the network, in evaluation mode, after each epoch.
        training: Options.
        seed: Of the order of the windows; dropout follows torch's global state.
        name: Label of the progress bar.

    Returns:
        An entry per epoch; the first with the largest quality is the one that was kept.
    """
    pieces = list(training_windows(sequences, max_history))
    batch_size = max(1, min(training.batch_size, len(pieces) // LEAST_STEPS))
    optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    rng, started, log, kept = np.random.default_rng(seed), time.monotonic(), [], {}
    supervised = sum(len(piece.items) - piece.num_context for piece in pieces)
    for epoch in progress(range(training.max_epochs), f"train {name}", unit="epochs at most"):
        loss = _epoch(network, optimizer, list(batches(pieces, batch_size, rng))) / supervised
        network.eval()
        log.append(Epoch(loss, quality(), (epoch + 1) * supervised, time.monotonic() - started))
        best = best_epoch(log)
        if best == epoch:
            kept = {key: value.clone() for key, value in network.state_dict().items()}
        elif epoch - best >= training.patience:
            break
    network.load_state_dict(kept)
    return log


def best_epoch(log: Sequence[Epoch]) -> int:
    """0-based place of the first entry with the largest quality."""
    return int(np.argmax([entry.quality for entry in log]))


def training_windows(sequences: Sequence[np.ndarray], max_history: int) -> Iterator[Window]:
    """Windows of at most `max_history` + 1 items that together hold every item of a sequence but the first as a target.

    A sequence of one item has none.
    """
    for sequence in sequences:
        for start, end, first_target in windows(len(sequence), max_history):
            if end - start > 1:
                yield Window(sequence[start:end], max(1, first_target - start))


def batches(pieces: Sequence[Window], batch_size: int, rng: np.random.Generator) -> Iterator[list[Window]]:
    """The windows in random batches of similar lengths, in random order."""
    order, found = rng.permutation(len(pieces)), []
    for first in range(0, len(order), BUCKET * batch_size):
        bucket = sorted(order[first : first + BUCKET * batch_size], key=lambda i: len(pieces[i].items))
        found += [bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size)]
    for i in rng.permutation(len(found)):
        yield [pieces[place] for place in found[i]]


def _epoch(network: Network, optimizer: torch.optim.Optimizer, epoch: list[list[Window]]) -> float:
    """One step per batch; the summed loss of all supervised positions."""
    network.train()
    total = torch.zeros((), device=network.items.weight.device, dtype=torch.float64)
    for batch in epoch:
        loss, count = summed_loss(network, batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        total += loss.detach()
    return total.item()


def summed_loss(network: Network, batch: Sequence[Window]) -> tuple[Tensor, int]:
    """Cross-entropy over all items, summed over the supervised positions of a batch, and their number."""
    padded, lengths = pad_right([piece.items for piece in batch])
    place = np.arange(1, padded.shape[1])  # (T,) of the target in its window
    context = np.array([piece.num_context for piece in batch])
    supervised = (place >= context[:, None]) & (place < lengths[:, None])  # (B, T)
    items, mask = (torch.from_numpy(array).to(network.items.weight.device) for array in (padded, supervised))
    states = network(items[:, :-1])[mask]  # (S, D): the head, which is the larger part, reads these alone
    return functional.cross_entropy(network.scores(states), items[:, 1:][mask], reduction="sum"), int(supervised.sum())
