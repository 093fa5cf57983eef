"""Rankers by neighbours: each item of the history scores its neighbours, by a weight that falls with its age.

Shapes: B histories, Q queries, H places of a window, N items, K neighbours of the item that has most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from llmrec.baselines.counted.entries import flat, matrix, place_of
from llmrec.baselines.counted.popularity import Popularity
from llmrec.baselines.queries import Queries, before
from llmrec.data.catalog import Catalog

# Neighbours of an item that probabilities reach, its strongest; bounds the table on the device. A ranking reads all.
MOST = 1024


class NeighbourRanker(Popularity, ABC):
    """Neighbours of the items of a history, then the popular items.

    A ranker defines `count_neighbours` and `weight`. Arguments as for Popularity.

    Attributes:
        neighbours: (N, N) positive score that an item gives to each of its neighbours.
    """

    def __init__(
        self,
        catalog: Catalog,
        device: str | torch.device = "cpu",
        learned: Mapping[str, Tensor] | None = None,
        **options: Any,  # the class `options` checks them
    ):
        super().__init__(catalog, device, learned, **options)
        if learned is None:
            self.neighbours = self.count_neighbours(catalog)
        else:
            parts = tuple(learned[name].cpu().numpy() for name in ("values", "columns", "offsets"))
            self.neighbours = sparse.csr_array(parts, shape=(len(self.count), len(self.count)))

    @abstractmethod
    def count_neighbours(self, catalog: Catalog) -> sparse.csr_array:
        """Count from training sequences the (N, N) positive score that each item gives to its neighbours."""

    @abstractmethod
    def weight(self, age: np.ndarray) -> np.ndarray:
        """Weights of the items of a history by their age, which is 0 for the last one."""

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) weighted sum of what the items of each history give to their neighbours."""
        owner, items, age = flat(histories)
        return matrix(owner, items, self.weight(age), (len(histories), len(self.count))) @ self.neighbours

    def spread(self, queries: Queries) -> Tensor:
        """(Q, N) float32 scores of the items before each answer."""
        items, _ = before(queries)
        neighbours, values = self._table
        found = values.new_zeros(len(items), len(self.count))
        for age, weight in enumerate(self.weight(np.arange(items.shape[1])).tolist()):
            if weight:
                place = queries.length - 1 - age
                item = items.gather(1, place.clamp_min(0)[:, None])[:, 0]
                given = values[item] * (weight * (place >= 0))[:, None]  # (Q, K)
                found.scatter_add_(1, neighbours[item].long(), given)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Rows of `neighbours`, one after another."""
        arrays = {
            "values": self.neighbours.data.astype(np.float64),
            "columns": self.neighbours.indices.astype(np.int64),
            "offsets": self.neighbours.indptr.astype(np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """Neighbours of each item, (N, K) int32, and their scores, (N, K) float32; 0 beyond the last."""
        entries = self.neighbours.tocoo()
        best = np.lexsort((-entries.data, entries.row))
        owner, place = entries.row[best], place_of(entries.row[best])
        kept = place < MOST
        shape = (len(self.count), int(place[kept].max(initial=0)) + 1)
        neighbours, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        neighbours[owner[kept], place[kept]] = entries.col[best][kept]
        values[owner[kept], place[kept]] = entries.data[best][kept]
        return torch.from_numpy(neighbours).to(self.device), torch.from_numpy(values).to(self.device)
