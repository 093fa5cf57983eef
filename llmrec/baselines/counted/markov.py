"""Markov: the items that followed the last item in training.

Shapes: N items.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llmrec.baselines.counted.entries import matrix
from llmrec.baselines.counted.neighbours import NeighbourRanker
from llmrec.data.catalog import Catalog


class Markov(NeighbourRanker):
    """Items that followed the user's last item in training, by their share of its transitions.

    A single transition outweighs any popularity; popularity only orders equal shares and the items that never followed.

    Source: the first-order chain of FPMC (Rendle et al., WWW 2010), counted instead of factorised.
    """

    name = "markov"

    def count_neighbours(self, catalog: Catalog) -> sparse.csr_array:
        """Count the (N, N) share of each item among the transitions from each item."""
        return transitions(catalog)

    def weight(self, age: np.ndarray) -> np.ndarray:
        """1 for the last item, 0 for all others."""
        return (age == 0).astype(np.float64)


def transitions(catalog: Catalog) -> sparse.csr_array:
    """(N, N) share of each item among the items that followed each item in training."""
    train = catalog.train
    users = np.repeat(np.arange(len(train)), np.diff(train.offsets) + 1)
    items = np.insert(train.values, train.offsets[1:], train.targets)  # sequences, one after another
    follows = users[1:] == users[:-1]
    before, after = items[:-1][follows], items[1:][follows]
    share = 1 / np.bincount(before, minlength=catalog.num_items)[before]
    return matrix(before, after, share, (catalog.num_items, catalog.num_items))
