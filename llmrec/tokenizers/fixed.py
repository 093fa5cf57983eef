"""Semantic IDs without learning: one token per item, and two controls.

atomic   One level with a code of its own for every item, as P5's independent item ids: no sharing, so that nothing
         carries over from one item to another.
random   Codes drawn uniformly: the quality that a decoder reaches without any structure in the codes.
sorted   Items in the order of their titles, cut into equal parts, level after level: structure that is there and is
         not about taste.

Sources: P5 (arXiv:2203.13366) for atomic ids; random ids are the control of TIGER (arXiv:2305.05065).

Shapes: N items, L levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded, ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.views import ItemViews


@dataclass
class CatalogCoder:
    """Codes that follow from the catalogue alone.

    Attributes:
        codes: Catalogue -> (N, L) int64 codes.
        level_sizes: Number of codes of each level.
    """

    codes: Callable[[Catalog], np.ndarray]
    level_sizes: list[int]

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads."""
        return []

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its codes; see `ItemTokenizer.encode`."""
        return Encoded(self.codes(catalog))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"level_sizes": self.level_sizes}


@dataclass(kw_only=True)
class Atomic(ItemTokenizer):
    """One token per item."""

    method: ClassVar[str] = "atomic"
    needs_views: ClassVar[bool] = False
    tells_apart: ClassVar[bool] = True

    def planned_sizes(self, num_items: int) -> list[int]:
        return [num_items]

    def codes(self, catalog: Catalog) -> np.ndarray:
        """(N, 1) item rows of the catalogue of `fit`.

        Raises:
            ValueError: If the catalogue has another number of items.
        """
        if self.level_sizes != [catalog.num_items]:
            raise ValueError(f"'{self.method}' has codes for the catalogue that it was fitted on alone; fit it first.")
        return np.arange(catalog.num_items)[:, None]

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder = CatalogCoder(self.codes, self.planned_sizes(catalog.num_items))
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self.coder = CatalogCoder(self.codes, facts["level_sizes"])


@dataclass(kw_only=True)
class Random(ItemTokenizer):
    """Uniform codes."""

    method: ClassVar[str] = "random"
    needs_views: ClassVar[bool] = False

    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def codes(self, catalog: Catalog) -> np.ndarray:
        """(N, L) int64 draws."""
        shape = (catalog.num_items, self.num_levels)
        return np.random.default_rng(self.seed).integers(0, self.codebook_size, shape)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder = CatalogCoder(self.codes, self.planned_sizes(catalog.num_items))
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self.coder = CatalogCoder(self.codes, facts["level_sizes"])


@dataclass(kw_only=True)
class Sorted(ItemTokenizer):
    """Place in the order of titles, written in base `codebook_size`, spread evenly over all semantic IDs."""

    method: ClassVar[str] = "sorted"
    needs_views: ClassVar[bool] = False

    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def codes(self, catalog: Catalog) -> np.ndarray:
        """(N, L) int64 digits of the places."""
        place_N = np.empty(catalog.num_items, np.int64)
        place_N[np.argsort(np.array(catalog.titles, dtype=str), kind="stable")] = np.arange(catalog.num_items)
        cells = self.codebook_size**self.num_levels
        # In Python's integers: the product of places and cells passes 2^63 at large catalogues.
        cell_N = [place * cells // catalog.num_items for place in place_N.tolist()]
        powers = [self.codebook_size**level for level in reversed(range(self.num_levels))]
        return np.array([[cell // power % self.codebook_size for power in powers] for cell in cell_N], dtype=np.int64)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder = CatalogCoder(self.codes, self.planned_sizes(catalog.num_items))
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self.coder = CatalogCoder(self.codes, facts["level_sizes"])
