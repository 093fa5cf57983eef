"""Markov: the items that followed the last item in training.

Shapes: B histories, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llmrec.baselines.counted.entries import flat, matrix
from llmrec.baselines.counted.popularity import Popularity
from llmrec.data.catalog import Catalog


class Markov(Popularity):
    """Items that followed the user's last item in training, by their share of its transitions.

    A single transition outweighs any popularity; popularity only orders equal shares and the items that never followed.

    Source: the first-order chain of FPMC (Rendle et al., WWW 2010), counted instead of factorised.
    """

    def __init__(self, catalog: Catalog):
        super().__init__(catalog)
        follows = self.users[1:] == self.users[:-1]
        before, after = self.items[:-1][follows], self.items[1:][follows]
        share = 1 / np.bincount(before, minlength=len(self.count))[before]
        self.transitions = matrix(before, after, share, (len(self.count), len(self.count)))  # (N, N)

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) share of each item among the transitions from the last item."""
        owner, items, age = flat(histories)
        last = age == 0
        return matrix(owner, items, last, (len(histories), len(self.count))) @ self.transitions
