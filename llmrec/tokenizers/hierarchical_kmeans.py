"""Hierarchical k-means: all items are split by k-means, every part is split again, level after level.

A code is the number of a part among the parts of its parent, so the same code under two parents means two things; the
prefix is what carries meaning. The balanced split is the HKM baseline of ReSID (arXiv:2602.02338), whose GAOQ gives
such codes a common meaning. Departures: ReSID names no solver for the balanced split, ours is that of balanced.py; a
part with fewer items than children has one child per item.

Shapes: N items, B points of a node, L levels, C children, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import progress
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.assigned import AssignedCodes
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.kmeans import code_means, kmeans, nearest
from llmrec.tokenizers.shared.tree import Tree, TreeLevel, rows_of_nodes
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews


@dataclass(kw_only=True)
class HierarchicalKMeans(ItemTokenizer):
    """Recursive k-means."""

    method: ClassVar[str] = "hierarchical_kmeans"

    view_weights: list[float] | None = options.view_weights()
    # 25 is the faiss default.
    iterations: int = options.kmeans_iterations(25)
    # ReSID.
    num_levels: int = options.num_levels(3)
    # ReSID chooses (b1, b2, b3) for each dataset, with b3 = ceil(N / (b1 b2)).
    branching: list[int] | None = option(
        "Number of children of a node at each level; when left out, the same at all: the fewest that give every item "
        "a place.",
        None,
        least=2,
    )
    balanced: bool = option("Let the parts of a node differ in size by one item at most.", True)

    def problems(self) -> list[str]:
        branching = self.branching
        if branching is None or len(branching) == self.num_levels:
            return []
        return [f"branching is {branching}; give a number above 1 for each of the {self.num_levels} levels"]

    @property
    def holds_all_items(self) -> bool:
        return self.balanced

    def planned_sizes(self, num_items: int) -> list[int]:
        return self.branching or [least_base(num_items, self.num_levels)] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        # Nodes may have fewer items than children.
        points_ND = vectors.to_fit(2, all_items=self.holds_all_items).to(device)
        sizes, generator = self.planned_sizes(catalog.num_items), torch.Generator().manual_seed(self.seed)
        tree, codes_NL = grow_tree(points_ND, sizes, self.iterations, self.balanced, generator)
        coder = VectorCoder(vectors.dims, tree, device, self.view_weights)
        if self.balanced:
            coder.assign(vectors, codes_NL)
        self.coder = coder
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        device = resolve_device(self.device)
        tree, assigned = Tree.restored(tensors, facts["level_sizes"], device), AssignedCodes.restored(tensors)
        self.coder = VectorCoder(facts["view_dims"], tree, device, self.view_weights, assigned=assigned)


def grow_tree(
    points_ND: Tensor,
    sizes: Sequence[int],
    iterations: int,
    balanced: bool,
    generator: torch.Generator,
    features: float = 1.0,
) -> tuple[Tree, Tensor]:
    """Split points, and every part again.

    Args:
        points_ND: (N, D) on any device.
        sizes: Of each level, the children of a node.
        iterations: k-means iterations per node.
        balanced: Whether the parts of a node differ in size by one point at most.
        generator: CPU generator.
        features: Share of the dimensions that a node is split by, drawn for each node; centroids have all of them.

    Returns:
        The tree, and (N, L) int64 codes of the points.
    """
    levels, codes = [], []
    nodes_N = torch.zeros(len(points_ND), dtype=torch.int64, device=points_ND.device)
    for size in progress(sizes, "k-means", unit="levels"):
        codes_N, centroids = torch.empty_like(nodes_N), []
        for rows_B in rows_of_nodes(nodes_N):
            children_CD, codes_N[rows_B] = _split(points_ND[rows_B], size, iterations, balanced, generator, features)
            centroids.append(children_CD)
        counts = torch.tensor([0, *map(len, centroids)], device=nodes_N.device)
        levels.append(TreeLevel(torch.cat(centroids), counts.cumsum(0)))
        codes.append(codes_N)
        nodes_N = levels[-1].first[nodes_N] + codes_N
    return Tree(levels, list(sizes)), torch.stack(codes, dim=1)


def _split(
    points_BD: Tensor, size: int, iterations: int, balanced: bool, generator: torch.Generator, features: float
) -> tuple[Tensor, Tensor]:
    """(C, D) centroids and (B,) codes of the points of one node."""
    if len(points_BD) <= size:
        return points_BD, torch.arange(len(points_BD), device=points_BD.device)
    if features < 1:
        dim = points_BD.shape[1]
        drawn = torch.randperm(dim, generator=generator)[: max(1, round(features * dim))].to(points_BD.device)
        part_CD, codes_B = _split(points_BD[:, drawn], size, iterations, balanced, generator, 1.0)
        return code_means(points_BD, codes_B, points_BD[: len(part_CD)])[0], codes_B  # every code has points
    if balanced:
        return balanced_kmeans(points_BD, size, iterations, generator)
    codebook_CD = kmeans(points_BD, size, iterations, generator)
    used, codes_B = nearest(points_BD, codebook_CD)[0].unique(return_inverse=True)
    return codebook_CD[used], codes_B


def least_base(num_items: int, num_levels: int) -> int:
    """Smallest number whose power `num_levels` is at least `num_items`."""
    base = max(1, math.floor(num_items ** (1 / num_levels)) - 1)  # the root may be off by a rounding error
    while base**num_levels < num_items:
        base += 1
    return base
