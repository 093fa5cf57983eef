"""Tokenizers whose fitted items may have other codes than the nearest ones: balanced clusters have a size to keep.

The codes that `fit` assigned are part of what it has learned. `encode` gives them back, in any catalogue and from a
loaded tokenizer, to every fitted item whose nearest codes are still those of `fit`: its vector has not moved as far as
the codebooks can tell. New items, and items that have moved, get the nearest codes.

Shapes: N items, B rows of a chunk, L levels, K codes of the last level, D dimension of the vectors.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.shared.vectors import VectorTokenizer
from llmrec.views import ItemViews


@dataclass(kw_only=True)
class AssignedTokenizer(VectorTokenizer):
    """A tokenizer that keeps the codes of the fitted items.

    `learn` sets `assigned_NL`, (N, L) codes of its points, or None where they are the nearest ones; a method defines
    `cost_after` in place of `last_level_cost`.
    """

    def __post_init__(self):
        super().__post_init__()
        self.assigned_NL: Tensor | None = None
        self.nearest_NL: Tensor | None = None  # of the same items, as is the next
        self.keys_N: Tensor | None = None

    @abstractmethod
    def cost_after(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) cost of each code of the last level for vectors with the given earlier codes."""

    def last_level_cost(self, points_BD: Tensor) -> Tensor:
        return self.cost_after(points_BD, self.codes_of(points_BD))

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        super().fit(catalog, views)
        if self.assigned_NL is not None:
            known_N = torch.from_numpy(self.inputs(views).known)
            self.nearest_NL = torch.from_numpy(super().encode(catalog, views).codes)
            codes_NL = self.nearest_NL.clone()
            codes_NL[~known_N] = self.codes_without_vector(self.nearest_NL[~known_N])
            codes_NL[known_N] = self.assigned_NL
            self.assigned_NL, self.keys_N = codes_NL, torch.from_numpy(item_keys(catalog.item_ids))
        return self

    def codes_without_vector(self, nearest_BL: Tensor) -> Tensor:
        """(B, L) codes of items that no view knows, given those nearest to the zero vector, which they all have."""
        return nearest_BL

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        nearest = super().encode(catalog, views)
        if self.assigned_NL is None:
            return nearest
        codes_NL, device = torch.from_numpy(nearest.codes.copy()), resolve_device(self.device)
        found_N, place_N = find_keys(item_keys(catalog.item_ids), self.keys_N.numpy())
        stays_N = torch.from_numpy(found_N) & (codes_NL == self.nearest_NL[place_N]).all(dim=1)
        codes_NL[stays_N] = self.assigned_NL[place_N][stays_N]
        return Encoded(
            codes_NL.numpy(),
            last_level_cost=lambda rows: self.cost_after(
                nearest.vectors(rows).to(device), codes_NL[torch.as_tensor(rows)].to(device)
            ).cpu(),
            vectors=nearest.vectors,
            reconstruction=lambda rows: self.rebuild(codes_NL[torch.as_tensor(rows)].to(device)).cpu(),
        )

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        if self.assigned_NL is not None:
            tensors |= {"assigned": self.assigned_NL, "nearest": self.nearest_NL, "item_keys": self.keys_N}
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        self.assigned_NL, self.nearest_NL, self.keys_N = map(tensors.get, ("assigned", "nearest", "item_keys"))


def item_keys(item_ids: Sequence[str]) -> np.ndarray:
    """(N,) int64 hashes of item_ids, by which tensors remember items; among 10^6 items two are equal once in 10^7."""
    digests = (hashlib.blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def find_keys(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each wanted key is among the keys, and where; the place of one that is not has no meaning."""
    order = keys.argsort()
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return keys[place] == wanted, place
