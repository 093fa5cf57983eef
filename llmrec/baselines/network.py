"""What the networks share: a vector per item at both ends, and histories padded on the right.

Unless a network says otherwise it reads from left to right and predicts the next item at every place. What stands to
the right of a place, padding included, cannot change its state then; no mask of the padding is needed.

Shapes: B histories, T items of the longest, W windows, D hidden, N items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from llmrec.baselines.examples import Examples, Windows, next_items, pad_right
from llmrec.baselines.training_options import TrainingOptions
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import from_host

INITIAL_STD = 0.02  # of item and position vectors, as BERT (arXiv:1810.04805) has it


class Network(nn.Module, ABC):
    """Item vectors, read as input and, tied, as the output matrix.

    Args:
        num_items: N.
        hidden: D.
        num_special: Vectors after those of the items, for what is read and never predicted.

    Attributes:
        name: Of the baseline.
        training: How it is trained unless the caller says otherwise.
        padding: Item row that fills histories up.
    """

    name: ClassVar[str]
    training: ClassVar[TrainingOptions] = TrainingOptions()
    padding: int = 0

    def __init__(self, num_items: int, hidden: int, num_special: int = 0):
        super().__init__()
        self.num_items = num_items
        self.items = nn.Embedding(num_items + num_special, hidden)
        nn.init.normal_(self.items.weight, std=INITIAL_STD)

    @classmethod
    def of(cls, catalog: Catalog, max_history: int, **options: Any) -> Self:
        """An untrained network for the items of a catalogue."""
        return cls(catalog.num_items, max_history, **options)

    def vectors(self) -> Tensor:
        """(N + num_special, D); computed once per batch, and handed to what reads and to what scores."""
        return self.items.weight

    @abstractmethod
    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """State at every place.

        Args:
            history: (B, T) int64 item rows, filled up with `padding` on the right.
            vectors: What `vectors` returns.

        Returns:
            (B, T, D).
        """

    def scores(self, states: Tensor, vectors: Tensor) -> Tensor:
        """(S, N) logit of every item after (S, D) states."""
        return states @ vectors[: self.num_items].T

    def examples(self, pieces: Windows, rng: np.random.Generator) -> Examples:
        """What an epoch reads and predicts of W windows."""
        return next_items(pieces)

    def last_scores(self, histories: Sequence[np.ndarray]) -> Tensor:
        """(B, N) logits of what follows each history; of an empty one, after padding, which says nothing."""
        padded, lengths = pad_right(histories, self.padding)
        device, vectors = self.items.weight.device, self.vectors()
        states = self(from_host(padded, device), vectors)  # (B, T, D)
        places = np.arange(len(padded)) * padded.shape[1] + np.maximum(lengths - 1, 0)
        return self.scores(states.flatten(0, 1).index_select(0, from_host(places, device)), vectors)
