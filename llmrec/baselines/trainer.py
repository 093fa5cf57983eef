"""The trainer of every neural baseline: softmax cross-entropy over all items at supervised places, best epoch kept.

The windows are those of `llmrec sft`; the network says what is predicted in them. A network that reads from left to
right predicts each item of a training sequence once, but not the first, which nothing precedes. An epoch is judged by a
function of the caller's, and the weights of the best one are kept.

Shapes: S supervised places of a batch, D hidden, N items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmrec.baselines.examples import Batch, Examples, batches, shuffled, training_windows
from llmrec.baselines.network import Network
from llmrec.baselines.training_options import TrainingOptions
from llmrec.runtime.console import progress

LEAST_STEPS = 32  # of an epoch: with fewer, as on a toy, patience ends training before anything is learned
# Places scored at once on a CPU, where all S of them leave the cache: with 750 of them and 12,101 items the head takes
# 66 ms forward and backward in blocks of 128, 119 ms in one. A GPU would only launch more kernels.
CPU_BLOCK = 128


class Epoch(NamedTuple):
    """One line of a training log.

    Attributes:
        loss: Mean over the supervised places.
        quality: What the caller's function said afterwards, larger is better.
        supervised: Items trained on so far, counted as often as they were.
        seconds: Wall time so far, judging included.
    """

    loss: float
    quality: float
    supervised: int
    seconds: float


def train(
    network: Network,
    sequences: Sequence[np.ndarray],
    max_history: int,
    quality: Callable[[], float],
    training: TrainingOptions,
    seed: int,
) -> list[Epoch]:
    """Train a network and leave it in evaluation mode with the weights of its best epoch.

    Args:
        network: On its device.
        sequences: Item rows of each user, oldest first; at least one has two items.
        max_history: Largest number of items before a target.
        quality: Judges the network, in evaluation mode, after each epoch.
        training: Options.
        seed: Of the order of the windows and what is hidden in them; dropout follows torch's global state.

    Returns:
        An entry per epoch; the first with the largest quality is the one that was kept.
    """
    pieces = training_windows(sequences, max_history)
    batch_size = max(1, min(training.batch_size, len(pieces.items) // LEAST_STEPS))
    # Fused: one kernel instead of a dozen per parameter; an epoch of this size waits for launches, not for arithmetic.
    optimizer = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    rng, started, log, kept, supervised = np.random.default_rng(seed), time.monotonic(), [], {}, 0
    for epoch in progress(range(training.max_epochs), f"train {network.name}", unit="epochs at most"):
        examples = network.examples(pieces, rng)
        count = int(examples.supervised.sum())
        loss = _epoch(network, optimizer, examples, shuffled(examples.lengths, batch_size, rng)) / count
        supervised += count
        network.eval()
        log.append(Epoch(loss, quality(), supervised, time.monotonic() - started))
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


def _epoch(network: Network, optimizer: torch.optim.Optimizer, examples: Examples, rows: Sequence[np.ndarray]) -> float:
    """One step per array of rows; the summed loss of all supervised places."""
    network.train()
    device = network.items.weight.device
    total = torch.zeros((), device=device, dtype=torch.float64)
    for batch in batches(examples, rows, device):
        loss = summed_loss(network, batch)
        optimizer.zero_grad()
        (loss / len(batch.targets)).backward()
        optimizer.step()
        total += loss.detach()
    return total.item()


def summed_loss(network: Network, batch: Batch) -> Tensor:
    """Cross-entropy over all items, summed over the supervised places of a batch."""
    vectors = network.vectors()
    states = network(batch.history, vectors).flatten(0, 1).index_select(0, batch.places)  # (S, D): all the head reads
    block = CPU_BLOCK if states.device.type == "cpu" else len(states)
    losses = [
        functional.cross_entropy(network.scores(part, vectors), targets, reduction="sum")
        for part, targets in zip(states.split(block), batch.targets.split(block), strict=True)
    ]
    return torch.stack(losses).sum()
