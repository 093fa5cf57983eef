"""RecForest: several trees of balanced clusters, each of which gives every item a leaf, and so a semantic ID.

The trees differ by chance and by their features: each node is split by a part of the dimensions, drawn anew. So two
items that a border divides in one tree lie together in another. Every tree has codes of its own; `llmrec sft` draws a
tree for each sequence, and rankings come from all of them (`llmrec.decoding.aliases`).

Source: RecForest (Feng et al., NeurIPS 2022), with 4 trees and .8 of the features, over item vectors of a trained DIN.

Departures: the number of children is the smallest that gives every item a leaf of its own, so that few leaves are left
(1.005 per item for 12,101 items in three levels), and these stay empty. The paper fixes 18 children, which takes 8.67
leaves per item there, and fills them with random copies of items; as its training always takes the first path of an
item, copies are never learned. Balanced clusters are those of balanced.py instead of turns of the centroids, which end
further from the optimum. A code is one of its tree and level, where the paper has one vocabulary for all levels. One
LLM reads and writes all trees, where the paper has an encoder of item ids and a decoder for each tree; the loss is that
of one tree drawn for each sequence, not the sum over all.

Shapes: N items, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.hierarchical_kmeans import grow_tree, least_base
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.assigned import AssignedCodes
from llmrec.tokenizers.shared.tree import Tree
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews


@dataclass(kw_only=True)
class RecForest(ItemTokenizer):
    """Trees of balanced clusters, one alias each."""

    method: ClassVar[str] = "rec_forest"
    reads_all_items: ClassVar[bool] = True
    shares_codes: ClassVar[bool] = False

    view_weights: list[float] | None = options.view_weights()
    # RecForest.
    num_trees: int = option("Number of trees, and of semantic IDs of an item.", 4, least=1, most=64)
    features: float = option("Share of the dimensions that a node is split by.", 0.8, above=0, most=1)
    # Ours; the paper has as many levels as 18 children at each need.
    num_levels: int = options.num_levels(3)
    iterations: int = options.kmeans_iterations(25)

    @property
    def num_aliases(self) -> int:
        return self.num_trees

    def planned_sizes(self, num_items: int) -> list[int]:
        return [least_base(num_items, self.num_levels)] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        points_ND = vectors.to_fit(2, all_items=self.holds_all_items).to(device)
        sizes, generator = self.planned_sizes(catalog.num_items), torch.Generator().manual_seed(self.seed)
        coders = []
        for _ in range(self.num_trees):
            tree, codes_NL = grow_tree(points_ND, sizes, self.iterations, True, generator, self.features)
            coder = VectorCoder(vectors.dims, tree, device, self.view_weights)
            coder.assign(vectors, codes_NL)
            coders.append(coder)
        self.coder, self.other_coders = coders[0], [*coders[1:]]
        self.counts = {"leaves_per_item": round(sizes[0] ** self.num_levels / catalog.num_items, 3)}
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        device = resolve_device(self.device)
        tree, assigned = Tree.restored(tensors, facts["level_sizes"], device), AssignedCodes.restored(tensors)
        self.coder = VectorCoder(facts["view_dims"], tree, device, self.view_weights, assigned=assigned)
