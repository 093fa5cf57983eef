"""Popularity, and the base class of the counted baselines: filling, exclusion, order of ties.

Shapes: B histories, N items, k places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llmrec.baselines.counted.entries import flat, place_of
from llmrec.data.catalog import Catalog
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.ranking import UNFILLED, Ranking

BATCH = 512  # histories ranked at once; bounds the memory of ItemKNN, which scores many items


class Popularity:
    """Items by their number of training interactions; the same list for everyone.

    It is the base class of the others, which override `scores` and inherit filling, exclusion and the order of ties.

    Args:
        catalog: Catalogue whose training sequences are counted.
    """

    log: Sequence[Epoch] = ()

    def __init__(self, catalog: Catalog):
        self.users, self.items, _ = flat(catalog.train.sequences())  # one entry per training interaction
        self.count = catalog.training_counts  # (N,)
        self.order = np.lexsort((np.arange(len(self.count)), -self.count))  # (N,) most popular first

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) positive scores of the items that rank before the popular ones."""
        return sparse.csr_array((len(histories), len(self.count)))

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items for each history.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Number of places.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k). An item that popularity filled in has its share of all interactions minus one as
            its score, which is below every score of `scores`.
        """
        exclude = exclude if exclude is not None else [np.empty(0, np.int64)] * len(histories)
        items, scores = np.full((len(histories), k), UNFILLED), np.full((len(histories), k), -np.inf)
        for first in range(0, len(histories), BATCH):
            part = slice(first, first + BATCH)
            self._rank_batch(histories[part], exclude[part], items[part], scores[part])
        return Ranking(items, np.broadcast_to(np.arange(k), items.shape), scores)

    def _rank_batch(
        self, histories: Sequence[np.ndarray], exclude: Sequence[np.ndarray], items: np.ndarray, scores: np.ndarray
    ) -> None:
        """Fill `items` and `scores`, both (B, k)."""
        num_items, k = len(self.count), items.shape[1]
        scored = self.scores(histories).tocoo()
        # Popular items that are excluded or already scored are dropped below, so more than k are needed.
        popular = self.order[: k + max(map(len, exclude), default=0)]
        owner = np.concatenate([scored.row, np.repeat(np.arange(len(histories)), len(popular))]).astype(np.int64)
        item = np.concatenate([scored.col, np.tile(popular, len(histories))]).astype(np.int64)
        share = self.count / max(self.count.sum(), 1)
        values = np.concatenate([scored.data, np.tile(share[popular] - 1, len(histories))])
        blocked_owner, blocked_item, _ = flat(exclude)
        allowed = ~np.isin(owner * num_items + item, blocked_owner * num_items + blocked_item)
        owner, item, values = owner[allowed], item[allowed], values[allowed]
        # The first entry of each pair is kept, so a score takes precedence over popularity.
        _, once = np.unique(owner * num_items + item, return_index=True)
        owner, item, values = owner[once], item[once], values[once]
        best = np.lexsort((item, -self.count[item], -values, owner))
        place = place_of(owner[best])
        best, place = best[place < k], place[place < k]
        items[owner[best], place], scores[owner[best], place] = item[best], values[best]
