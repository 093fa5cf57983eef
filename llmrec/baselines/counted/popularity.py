"""Popularity, and the base class of the counted rankers: filling, exclusion, order of ties, probabilities.

Shapes: B histories, Q queries, N items, k places.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from llmrec.baselines.counted.entries import flat, place_of
from llmrec.baselines.counted.options import CountedOptions
from llmrec.baselines.queries import Queries, in_proportion, popularity
from llmrec.data.catalog import Catalog
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime.device import resolve_device

BATCH = 512  # histories ranked at once; bounds the memory of ItemKNN, which scores many items
FLOOR = 1e-3  # share of the probability that popularity has, so that every item has some


class Popularity:
    """Items by their number of training interactions; the same list for everyone.

    It is the base class of the others, which override `scores` and `spread` and inherit the rest.

    Args:
        catalog: Catalogue whose training sequences are counted.
        device: Device of `probabilities`: auto, cpu or cuda.
        learned: Result of `tensors` of the same ranker on this catalogue; nothing is counted again then.
        options: Fields of the class attribute `options`.

    Attributes:
        grid: Values of the options that `llmrec.baselines.counted.fitted` chooses on valid.
        chosen: All options, defaults included.
    """

    name: ClassVar[str] = "popularity"
    options: ClassVar[type[CountedOptions]] = CountedOptions
    grid: ClassVar[Mapping[str, Sequence[float]]] = {}
    log: Sequence[Epoch] = ()

    def __init__(
        self,
        catalog: Catalog,
        device: str | torch.device = "cpu",
        learned: Mapping[str, Tensor] | None = None,
        **options: Any,  # the class `options` checks them
    ):
        self.device, self.chosen = resolve_device(str(device)), self.options(**options)
        self.count = catalog.training_counts  # (N,)
        self.order = np.lexsort((np.arange(len(self.count)), -self.count))  # (N,) most popular first
        self.popularity = popularity(self.count, self.device)  # (N,) logits

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) positive scores of the items that rank before the popular ones."""
        return sparse.csr_array((len(histories), len(self.count)))

    def spread(self, queries: Queries) -> Tensor | None:
        """(Q, N) float32 `scores` of the items before each answer; None if there are none."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Counts to be saved, by name; none of popularity, which is counted from the catalogue each time."""
        return {}

    def with_power(self, power: float) -> Self:
        """Copy the ranker with another `power`; what was counted is shared."""
        other = copy.copy(self)
        other.chosen = dataclasses.replace(self.chosen, power=power)
        return other

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
        """Answer queries as `llmrec.baselines.queries.Teacher` says: scores to `power`, and a little popularity."""
        popular, scores = self.popularity.softmax(dim=0), self.spread(queries)
        if scores is None:
            shares = popular.expand(len(queries.length), -1)
        else:
            powers = scores if self.chosen.power == 1 else scores.pow_(self.chosen.power)
            total = powers.sum(dim=1, keepdim=True).clamp_min_(torch.finfo(powers.dtype).tiny)
            shares = powers.mul_((1 - FLOOR) / total).add_(FLOOR * popular)
        return in_proportion(shares, queries, exclude_seen, temperature)

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
