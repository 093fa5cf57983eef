"""Tokenizers that split all items into parts, and every part again.

Shapes: N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.assigned import AssignedTokenizer
from llmrec.views import ItemViews


@dataclass(kw_only=True)
class SplittingTokenizer(AssignedTokenizer):
    """A tokenizer by k-means within nodes; how many codes a level has may follow from the number of items."""

    # 25 is the faiss default.
    iterations: int = option("k-means iterations per node.", 25, least=1)

    def __post_init__(self):
        super().__post_init__()
        self.sizes: list[int] = []

    @property
    def level_sizes(self) -> list[int]:
        return self.sizes

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.sizes = self.planned_sizes(catalog.num_items)
        return super().fit(catalog, views)

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        return tensors, {**facts, "level_sizes": self.sizes}

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        self.sizes = facts["level_sizes"]


def rows_of_nodes(nodes_N: Tensor) -> tuple[Tensor, ...]:
    """Rows of the points of each node that has any, node by node in ascending order."""
    order_N = nodes_N.argsort(stable=True)
    return order_N.split(nodes_N.unique(return_counts=True)[1].tolist())
