"""Repeat: the items that a user had before.

Shapes: B histories, Q queries, H places of a window, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from llmrec.baselines.counted.entries import flat, matrix
from llmrec.baselines.counted.popularity import Popularity
from llmrec.baselines.queries import Queries, before


class Repeat(Popularity):
    """The user's own items, most frequent first and latest first among equals, then the popular items.

    Source: GP-TopFreq of Li et al. (arXiv:2109.14233); ordering its ties by recency is ours.
    """

    name = "repeat"

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) frequency of each item in the history, plus less than 1 for recency."""
        owner, items, age = flat(histories)
        # The powers of two of one history sum to less than 1, so they only order items of equal frequency.
        return matrix(owner, items, 1 + 0.5 ** (age + 1.0), (len(histories), len(self.count)))

    def spread(self, queries: Queries) -> Tensor:
        """(Q, N) float32 scores of the items before each answer."""
        items, real = before(queries)
        place = torch.arange(items.shape[1], device=items.device)
        values = (1 + 0.5 ** (queries.length[:, None] - place).float()) * real  # (Q, H); the age is one less
        return values.new_zeros(len(items), len(self.count)).scatter_add_(1, items, values)
