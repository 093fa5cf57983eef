"""ItemKNN: the items that share training users with those of the history.

Shapes: N items, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from llmrec.baselines.counted.entries import flat, largest, matrix
from llmrec.baselines.counted.neighbours import NeighbourRanker
from llmrec.baselines.counted.options import CHOSEN, CountedOptions
from llmrec.configs.options import option
from llmrec.data.catalog import Catalog

BLOCK = 2048  # items whose similarities are computed at once; bounds memory before the neighbours are cut


@dataclass(kw_only=True)
class ItemKNNOptions(CountedOptions):
    """Options of ItemKNN."""

    # Swept on validation ndcg@10, seen items excluded, on 4,000 examples of MovieTweetings and of Beauty 2014:
    # decay .3 … .9 and shrink 0 … 100. From (.8, 0) to (.5, 20): .1220 -> .1316 and .0482 -> .0582.
    decay: float = option(
        f"Weight of each item of a history, as a share of that of the next one. {CHOSEN}", 0.5, above=0, most=1
    )
    shrink: float = option(f"Number that is added to the denominator of a similarity. {CHOSEN}", 20.0, least=0)
    neighbours: int = option("Most similar items that each item scores.", 200, least=1)


class ItemKNN(NeighbourRanker):
    """Items that share training users with the items of the history: cosine similarity, summed with recency decay.

    score(j) = sum over history items i of decay^age(i) * n_ij / (sqrt(n_i n_j) + shrink), n counts distinct users, the
    last item has age 0, and each i scores only its `neighbours` most similar j.

    Source: Sarwar et al., Item-based collaborative filtering (WWW 2001), with the shrink term of Ferrari Dacrema et al.
    (arXiv:1907.06902).
    """

    name = "item_knn"
    options: ClassVar[type[ItemKNNOptions]] = ItemKNNOptions
    grid: ClassVar[Mapping[str, Sequence[float]]] = {"shrink": (0, 5, 20, 50), "decay": (0.3, 0.5, 0.7, 0.85)}
    chosen: ItemKNNOptions

    def count_neighbours(self, catalog: Catalog) -> sparse.csr_array:
        """Count the (N, N) similarities of each item to its nearest neighbours."""
        owner, items, _ = flat(catalog.train.sequences())
        users = matrix(items, owner, np.ones(len(items)), (catalog.num_items, len(catalog.train)))  # (N, U)
        users.data[:] = 1
        blocks = [self._similar(users, first) for first in range(0, catalog.num_items, BLOCK)]
        return sparse.vstack(blocks, format="csr")

    def _similar(self, users: sparse.csr_array, first: int) -> sparse.csr_array:
        """(BLOCK, N) similarities of the items from `first` on to their nearest neighbours."""
        norm = np.sqrt(users.sum(axis=1))
        block = users[first : first + BLOCK]
        both = (block @ users.T).tocoo()
        other = both.row + first != both.col
        row, col, count = both.row[other], both.col[other], both.data[other]
        cosine = count / (norm[row + first] * norm[col] + self.chosen.shrink)
        return matrix(*largest(row, col, cosine, self.chosen.neighbours), both.shape)

    def weight(self, age: np.ndarray) -> np.ndarray:
        """`decay` to the power of the age."""
        return self.chosen.decay**age
