"""Semantic IDs that are learned from nothing: one token per item, and two controls.

atomic   One level with a code of its own for every item, as P5's independent item ids: no sharing, so that nothing
         carries over from one item to another.
random   Codes drawn uniformly: what a decoder reaches without any structure in the codes.
sorted   Items in the order of their titles, cut into equal parts, level after level: structure that is there and is
         not about taste.

Sources: P5 (arXiv:2203.13366) for atomic ids; random ids are the control of TIGER (arXiv:2305.05065).

Shapes: N items, L levels.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded, ItemTokenizer
from llmrec.views import ItemViews


@dataclass(kw_only=True)
class FixedTokenizer(ItemTokenizer):
    """Codes that follow from the catalogue alone; of another catalogue than that of `fit` there are none."""

    needs_views: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self._sizes: list[int] = []

    @property
    def level_sizes(self) -> list[int]:
        return self._sizes

    @abstractmethod
    def codes_of(self, catalog: Catalog) -> np.ndarray:
        """(N, L) int64 codes."""

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self._sizes = self.planned_sizes(catalog.num_items)
        return self

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        if self._sizes != self.planned_sizes(catalog.num_items):
            raise ValueError(f"'{self.method}' has codes for the catalogue that it was fitted on alone; fit it first.")
        return Encoded(self.codes_of(catalog))

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        return {}, {"level_sizes": self._sizes}

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self._sizes = facts["level_sizes"]


@dataclass(kw_only=True)
class Atomic(FixedTokenizer):
    """One token per item."""

    method: ClassVar[str] = "atomic"

    def planned_sizes(self, num_items: int) -> list[int]:
        return [num_items]

    def codes_of(self, catalog: Catalog) -> np.ndarray:
        return np.arange(catalog.num_items)[:, None]


@dataclass(kw_only=True)
class Leveled(FixedTokenizer):
    """Levels of one size."""

    num_levels: int = option("Codes per item, before a collision suffix.", 3, least=1)
    codebook_size: int = option("Codes per level.", 256, least=2)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels


@dataclass(kw_only=True)
class Random(Leveled):
    """Uniform codes."""

    method: ClassVar[str] = "random"

    def codes_of(self, catalog: Catalog) -> np.ndarray:
        shape = (catalog.num_items, self.num_levels)
        return np.random.default_rng(self.seed).integers(0, self.codebook_size, shape)


@dataclass(kw_only=True)
class Sorted(Leveled):
    """Place in the order of titles, written in base `codebook_size`, spread evenly over all semantic IDs."""

    method: ClassVar[str] = "sorted"

    def codes_of(self, catalog: Catalog) -> np.ndarray:
        place_N = np.empty(catalog.num_items, np.int64)
        place_N[np.argsort(np.array(catalog.titles, dtype=str), kind="stable")] = np.arange(catalog.num_items)
        cells = self.codebook_size**self.num_levels
        # In Python's integers: the product of places and cells passes 2^63 at large catalogues.
        cell_N = [place * cells // catalog.num_items for place in place_N.tolist()]
        powers = [self.codebook_size**level for level in reversed(range(self.num_levels))]
        return np.array([[cell // power % self.codebook_size for power in powers] for cell in cell_N], dtype=np.int64)
