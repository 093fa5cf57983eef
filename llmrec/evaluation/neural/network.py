"""What the networks share: a vector per item at both ends, and histories padded on the right.

A network reads from left to right, so what stands to the right of a position, padding included, cannot change its
state; no mask of the padding is needed.

Shapes: B histories, T items of the longest, D hidden, N items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

INITIAL_STD = 0.02  # of item and position vectors, as BERT (arXiv:1810.04805) has it


class Network(nn.Module, ABC):
    """Item vectors, read as input and, tied, as the output matrix.

    Args:
        num_items: N.
        hidden: D.
    """

    def __init__(self, num_items: int, hidden: int):
        super().__init__()
        self.items = nn.Embedding(num_items, hidden)
        nn.init.normal_(self.items.weight, std=INITIAL_STD)

    @abstractmethod
    def forward(self, history: Tensor) -> Tensor:
        """State at every position, from the items up to it.

        Args:
            history: (B, T) int64 item rows, padded on the right with any.

        Returns:
            (B, T, D).
        """

    def scores(self, states: Tensor) -> Tensor:
        """(..., N) logit of every item after states of shape (..., D)."""
        return states @ self.items.weight.T


def pad_right(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Histories as one array.

    Returns:
        (B, T) int64 item rows, 0 at padding, T at least 1; and (B,) int64 lengths.
    """
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    padded = np.zeros((len(histories), max(1, lengths.max(initial=0))), dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([np.empty(0, np.int64), *histories])
    return padded, lengths


def last_states(network: Network, histories: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """(B, D) state after the last item of each history; of an empty one, after padding, which says nothing."""
    padded, lengths = pad_right(histories)
    states = network(torch.from_numpy(padded).to(device))  # (B, T, D)
    return states[torch.arange(len(states)), torch.from_numpy(lengths - 1)]
