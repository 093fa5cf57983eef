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
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.examples import Batch, Examples, Windows, next_items, pad_right
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
        causal: True if the state at a place depends on what stands left of it alone, so that one pass over a sequence
            answers at all of its places.
        features: Names of the tensors about items that `of` takes as `features` too; they are kept with the weights.
        contrasts: True if the windows of a batch are compared with one another, so that it may not be divided.
    """

    name: ClassVar[str]
    options: ClassVar[type[TrainingOptions]]
    causal: ClassVar[bool] = True
    features: ClassVar[tuple[str, ...]] = ()
    contrasts: ClassVar[bool] = False

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

    @property
    def num_items(self) -> int:
        """N."""
        return self.items.num_embeddings

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

    def scores_of(self, states: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
        """(S, K) logits of K (S, K) item rows after each of (S, D) states."""
        return torch.einsum("sd,skd->sk", states, functional.embedding(items, vectors))

    def auxiliary_loss(self, batch: Batch, states: Tensor) -> Tensor | float:
        """Mean loss of what a network learns beside the next item.

        Args:
            batch: Inputs and targets.
            states: (B, T, D) states of the inputs.
        """
        return 0.0

    def examples(self, pieces: Windows, rng: np.random.Generator) -> Examples:
        """Inputs and targets of one epoch over W windows."""
        return next_items(pieces)

    def asked(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs whose state at a place predicts the item after each history.

        Args:
            items: (B, T) int64 item rows; what stands beyond a history is of no account.
            lengths: (B,) int64 number of items of each history.

        Returns:
            (B, T) inputs, and (B,) the places.
        """
        return items, (lengths - 1).clamp_min(0)

    def scores_after(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(B, N) logits of the item after each history; after an empty one they mean nothing.

        Arguments as in `asked`.
        """
        vectors = self.vectors()
        inputs, places = self.asked(items, lengths)
        states = self(inputs, vectors)  # (B, T, D)
        rows = torch.arange(len(states), device=states.device)
        return self.scores(states[rows, places], vectors)

    def last_scores(self, histories: Sequence[np.ndarray]) -> Tensor:
        """(B, N) logits of the item after each history of item rows, as `scores_after`."""
        items, lengths = (from_host(array, self.items.weight.device) for array in pad_right(histories))
        return self.scores_after(items, lengths)
