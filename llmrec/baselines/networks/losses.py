"""Losses of the networks: softmax over all items, or over the target and a sample of the others.

The sampled softmax is that of eSASRec (arXiv:2508.06450): uniform negatives, without a correction for sampling. Each
place draws its own. One draw for a whole batch would cost a single matrix product, but then a few hundred items would
be the negatives of thousands of places; the results in docs/results.md are of a draw for each place.

Shapes: S places, D hidden, V vectors, N items, K negatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from llmrec.baselines.networks.network import Network
from llmrec.baselines.networks.training_options import TrainingOptions

NEGATIVES = 256  # eSASRec's
# Sum of the losses of S places, of the network, (S, D) states, (S,) targets and the (V, D) vectors.
Loss = Callable[[Network, Tensor, Tensor, Tensor], Tensor]


def loss_of(training: TrainingOptions) -> Loss:
    """The loss that the options name."""
    if training.loss == "softmax":
        return softmax
    return functools.partial(sampled_softmax, num_negatives=training.negatives or NEGATIVES)


def softmax(network: Network, states: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
    """Cross-entropy over all items, summed over the places."""
    return functional.cross_entropy(network.scores(states, vectors), targets, reduction="sum")


def sampled_softmax(network: Network, states: Tensor, targets: Tensor, vectors: Tensor, num_negatives: int) -> Tensor:
    """Cross-entropy over the target and uniform negatives of each place, summed over the places."""
    negatives = torch.randint(network.num_items, (len(targets), num_negatives), device=targets.device)
    return softmax_against(network, states, targets, vectors, negatives)


def softmax_against(network: Network, states: Tensor, targets: Tensor, vectors: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy over the target and given negatives, summed over the places.

    Args:
        network: Network that scores.
        states: (S, D).
        targets: (S,) int64 item rows.
        vectors: (V, D) result of `network.vectors`.
        negatives: (S, K) int64 item rows; one that is the target does not count.
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (S, 1 + K)
    logits = network.scores_of(states, vectors, items)
    logits[:, 1:].masked_fill_(negatives == targets[:, None], -torch.inf)
    return functional.cross_entropy(logits, torch.zeros_like(targets), reduction="sum")
