"""The base class of the networks: one vector per item, read as input and tied to the output matrix.

Unless a network overrides it, a network reads from left to right and predicts the next item at every place. Histories
are padded on the right. What stands to the right of a place cannot change the state there, so padding needs no mask.

Shapes: B histories, T items of the longest, W windows, D hidden, N items, V vectors (items and special tokens).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from llmrec.baselines.networks.examples import Examples, Windows, next_items, pad_right
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import from_host

INITIAL_STD = 0.02  # of item and position vectors, as in BERT (arXiv:1810.04805)


def head_problems(hidden: int, heads: int) -> list[str]:
    """Sentence about a size that the attention heads cannot share; none if they can."""
    return [f"hidden is {hidden}; {heads} heads need a multiple of {heads}"] if hidden % heads else []


class Network(nn.Module, ABC):
    """A network over the item vectors.

    Args:
        num_vectors: V; N, unless the network reads special tokens that it never predicts.
        hidden: D.

    Attributes:
        name: Name of the baseline.
        options: Class of the options, of the trainer and of the network itself.
    """

    name: ClassVar[str]
    options: ClassVar[type[TrainingOptions]]

    def __init__(self, num_vectors: int, hidden: int):
        super().__init__()
        self.items = nn.Embedding(num_vectors, hidden)
        nn.init.normal_(self.items.weight, std=INITIAL_STD)

    @classmethod
    def of(cls, catalog: Catalog, max_history: int, **options: Any) -> Self:  # `options` checks them
        """Build an untrained network for the items of a catalogue.

        Args:
            catalog: Its items.
            max_history: Largest number of items of a history.
            options: Fields of `cls.options`, such as `hidden`.
        """
        return cls(catalog.num_items, max_history, **options)

    def vectors(self) -> Tensor:
        """(V, D) vectors; computed once per batch and passed to `forward` and to `scores`."""
        return self.items.weight

    @abstractmethod
    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """Compute the state at every place.

        Args:
            history: (B, T) int64 item rows, padded on the right.
            vectors: Result of `vectors`.

        Returns:
            (B, T, D).
        """

    def scores(self, states: Tensor, vectors: Tensor) -> Tensor:
        """(S, N) logit of every item after (S, D) states."""
        return states @ vectors.T

    def examples(self, pieces: Windows, rng: np.random.Generator) -> Examples:
        """Inputs and targets of one epoch over W windows."""
        return next_items(pieces)

    def inputs(self, histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Padded inputs (B, T) whose last state predicts the next item, and their lengths (B,)."""
        return pad_right(histories)

    def last_scores(self, histories: Sequence[np.ndarray]) -> Tensor:
        """(B, N) logits of the item after each history; after an empty one those of padding, which mean nothing."""
        padded, lengths = self.inputs(histories)
        device, vectors = self.items.weight.device, self.vectors()
        states = self(from_host(padded, device), vectors)  # (B, T, D)
        places = np.arange(len(padded)) * padded.shape[1] + np.maximum(lengths - 1, 0)
        return self.scores(states.flatten(0, 1).index_select(0, from_host(places, device)), vectors)
