"""The trainer of all networks: cross-entropy over all items or a sample at the supervised places; keeps the best epoch.

The windows are those of `llmrec sft`; the network defines what is predicted in them. A network that reads from left to
right predicts each item of a training sequence once, except the first. After each epoch a function of the caller
evaluates the network; the weights of the best epoch are kept.

Under `accelerate launch` each process takes every n-th window of a batch, and their gradients are added: the steps are
those of one process, but for rounding and for what each process draws by itself (dropout, negatives). Every process
computes the whole of a batch that may not be divided; their gradients are averaged.

Shapes: S supervised places of a batch, D hidden, N items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.baselines.networks.examples import Batch, Examples, batches, shuffled, training_windows
from llmrec.baselines.networks.losses import Loss, loss_of, softmax
from llmrec.baselines.networks.network import Network
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.evaluation.learning import Epoch
from llmrec.runtime import processes
from llmrec.runtime.console import progress

LEAST_STEPS = 32  # per epoch: with fewer, on a tiny catalogue, patience ends training before anything is learned
# Places scored at once on a CPU, so that the scores stay in its cache: with 750 places and 12,101 items the head takes
# 66 ms forward and backward in blocks of 128, and 119 ms in one block. On a GPU blocks only launch more kernels.
CPU_BLOCK = 128
CPU_WINDOWS = 32  # of one forward pass on a CPU
BETAS = (0.9, 0.98)  # SASRec's code


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
        network: Network on its device.
        sequences: Item rows of each user, oldest first; at least one has two items.
        max_history: Largest number of items before a target.
        quality: Function called after each epoch, with the network in evaluation mode; larger is better.
        training: Options of the trainer.
        seed: Seed of the order of the windows and of the masked items; dropout uses torch's global state.

    Returns:
        One entry per epoch. The weights kept are those of the first epoch with the largest quality.
    """
    pieces = training_windows(sequences, max_history)
    batch_size = max(1, min(training.batch_size, len(pieces.items) // LEAST_STEPS))
    # Fused: one kernel instead of a dozen per parameter. Epochs this small are bound by launches, not by arithmetic.
    optimizer = torch.optim.AdamW(
        network.parameters(), training.learning_rate, betas=BETAS, weight_decay=training.weight_decay, fused=True
    )
    if not processes.is_main():  # what one draws shall not be what another draws
        torch.manual_seed(int(np.random.SeedSequence([seed, processes.rank()]).generate_state(1)[0]))
    rng, started, log, kept, supervised = np.random.default_rng(seed), time.monotonic(), list[Epoch](), {}, 0
    for epoch in progress(range(training.max_epochs), f"train {network.name}", unit="epochs at most"):
        examples = network.examples(pieces, rng)
        count = int(examples.supervised.sum())
        order = shuffled(len(examples.lengths), batch_size, rng)
        loss = _epoch(network, optimizer, examples, order, loss_of(training)) / count
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
    """0-based position of the first entry with the largest quality."""
    return int(np.argmax([entry.quality for entry in log]))


def _epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    order: Sequence[np.ndarray],
    loss_function: Loss,
) -> float:
    """Take one step per array of window positions; the loss summed over all supervised places."""
    network.train()
    device = network.items.weight.device
    total = torch.zeros((), device=device, dtype=torch.float64)
    for chosen in order:
        count = int(examples.supervised[chosen].sum())
        optimizer.zero_grad()
        is_shared = not network.contrasts and len(chosen) >= processes.count()
        part = chosen[processes.rank() :: processes.count()] if is_shared else chosen
        times = 1 if is_shared else processes.count()  # that a window is counted in the sums of all processes
        divided = [part] if network.contrasts else passes(examples.lengths, part, device)
        for batch in batches(examples, divided, device):
            loss = summed_loss(network, batch, loss_function)
            (loss / (count * times)).backward()
            total += loss.detach() / times
        processes.add_up([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
        optimizer.step()
    return processes.total(total).item()


def passes(lengths: np.ndarray, chosen: np.ndarray, device: torch.device) -> list[np.ndarray]:
    """Divide a batch into forward passes: on a CPU into windows of similar lengths, to keep padding short."""
    if device.type != "cpu":
        return [chosen]
    by_length = chosen[np.argsort(lengths[chosen], kind="stable")]
    return np.array_split(by_length, -(-len(chosen) // CPU_WINDOWS))


def summed_loss(network: Network, batch: Batch, loss: Loss = softmax) -> Tensor:
    """Loss, summed over the supervised places of a batch; each counts a network's auxiliary loss once."""
    vectors = network.vectors()
    everywhere = network(batch.history, vectors)
    states = everywhere.flatten(0, 1).index_select(0, batch.places)  # (S, D): all the head reads
    block = CPU_BLOCK if states.device.type == "cpu" else len(states)
    parts = zip(states.split(block), batch.targets.split(block), strict=True)
    next_item = torch.stack([loss(network, part, targets, vectors) for part, targets in parts]).sum()
    return next_item + len(batch.places) * network.auxiliary_loss(batch, everywhere)
