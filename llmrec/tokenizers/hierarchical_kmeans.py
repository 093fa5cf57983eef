"""Hierarchical k-means: all items are split by k-means, every part is split again, level after level.

A code is the number of a part among the parts of its parent, so the same code under two parents means two things; the
prefix is what carries meaning. The balanced split is the HKM baseline of ReSID (arXiv:2602.02338), whose GAOQ gives
such codes a common meaning. Departures: ReSID names no solver for the balanced split, ours is that of balanced.py; a
part with fewer items than children has one child per item.

Shapes: N items, B points of a node, L levels, C children, D dimension, P nodes of a level, Q = all their children.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.runtime.console import progress
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.kmeans import kmeans, nearest, squared_distances
from llmrec.tokenizers.shared.splits import SplittingTokenizer, rows_of_nodes
from llmrec.tokenizers.shared.vectors import require_distinct


class Level(NamedTuple):
    """Children of all nodes of a level, one after another; a child's row is its node at the next level.

    Attributes:
        centroids: (Q, D) float32.
        first: (P + 1,) int64; the children of node p are the rows `first[p]` to `first[p + 1]`.
    """

    centroids: Tensor
    first: Tensor


@dataclass(kw_only=True)
class HierarchicalKMeans(SplittingTokenizer):
    """Recursive k-means."""

    method: ClassVar[str] = "hierarchical_kmeans"

    # ReSID.
    num_levels: int = option("Codes per item, before a collision suffix.", 3, least=1)
    # ReSID chooses (b1, b2, b3) for each dataset, with b3 = ceil(N / (b1 b2)).
    branching: list[int] | None = option(
        "Children of a node at each level; when left out, the same at all: the fewest that give every item a place.",
        None,
    )
    balanced: bool = option("Parts of a node differ in size by one item at most.", True)

    def __post_init__(self):
        super().__post_init__()
        self.levels: list[Level] = []

    def problems(self) -> list[str]:
        problems, branching = super().problems(), self.branching
        if branching is not None and (len(branching) != self.num_levels or min(branching) < 2):
            problems.append(f"branching is {branching}; give a number above 1 for each of the {self.num_levels} levels")
        return problems

    def planned_sizes(self, num_items: int) -> list[int]:
        return self.branching or [least_base(num_items, self.num_levels)] * self.num_levels

    def learn(self, points_ND: Tensor) -> None:
        require_distinct(points_ND, 2)  # a node with fewer items than children has fewer children
        points_ND = points_ND.to(resolve_device(self.device))
        generator = torch.Generator().manual_seed(self.seed)
        self.levels, codes, nodes_N = [], [], torch.zeros(len(points_ND), dtype=torch.int64, device=points_ND.device)
        for size in progress(self.sizes, "k-means", unit="levels"):
            level, codes_N = self._split(points_ND, nodes_N, size, generator)
            self.levels.append(level)
            codes.append(codes_N)
            nodes_N = level.first[nodes_N] + codes_N
        self.assigned_NL = torch.stack(codes, dim=1).cpu() if self.balanced else None

    def _split(self, points_ND: Tensor, nodes_N: Tensor, size: int, generator: torch.Generator) -> tuple[Level, Tensor]:
        """Children of every node of a level, and (N,) which child of its node each point belongs to."""
        codes_N, centroids = torch.empty_like(nodes_N), []
        for rows_B in rows_of_nodes(nodes_N):
            codebook_CD, codes_N[rows_B] = self._children(points_ND[rows_B], size, generator)
            centroids.append(codebook_CD)
        counts = torch.tensor([0, *map(len, centroids)], device=nodes_N.device)
        return Level(torch.cat(centroids), counts.cumsum(0)), codes_N

    def _children(self, points_BD: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(C, D) centroids and (B,) codes of the points of one node."""
        if len(points_BD) <= size:
            return points_BD, torch.arange(len(points_BD), device=points_BD.device)
        if self.balanced:
            return balanced_kmeans(points_BD, size, self.iterations, generator, solver="prices")
        codebook_CD = kmeans(points_BD, size, self.iterations, generator)
        used, codes_B = nearest(points_BD, codebook_CD)[0].unique(return_inverse=True)
        return codebook_CD[used], codes_B

    def codes_of(self, points_BD: Tensor) -> Tensor:
        nodes_B, codes = torch.zeros(len(points_BD), dtype=torch.int64, device=points_BD.device), []
        for level in self.levels:
            codes_B = torch.zeros_like(nodes_B)
            for rows in rows_of_nodes(nodes_B):
                begin, end = level.first[nodes_B[rows[0]] :][:2].tolist()
                if end - begin > 1:
                    codes_B[rows] = nearest(points_BD[rows], level.centroids[begin:end])[0]
            codes.append(codes_B)
            nodes_B = level.first[nodes_B] + codes_B
        return torch.stack(codes, dim=1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        return self.levels[-1].centroids[self._parents(codes_BL, self.num_levels)]

    def _parents(self, codes_BL: Tensor, depth: int) -> Tensor:
        """(B,) node that the first `depth` codes lead to."""
        nodes_B = torch.zeros_like(codes_BL[:, 0])
        for level, codes_B in zip(self.levels[:depth], codes_BL.T, strict=False):
            nodes_B = level.first[nodes_B] + codes_B
        return nodes_B

    def cost_after(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """Infinite for children that the parent does not have."""
        cost_BK = points_BD.new_full((len(points_BD), self.sizes[-1]), torch.inf)
        nodes_B, level = self._parents(codes_BL, self.num_levels - 1), self.levels[-1]
        for rows in rows_of_nodes(nodes_B):
            begin, end = level.first[nodes_B[rows[0]] :][:2].tolist()
            cost_BK[rows, : end - begin] = squared_distances(points_BD[rows], level.centroids[begin:end])
        return cost_BK

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        for i, level in enumerate(self.levels):
            tensors |= {f"centroids_{i}": level.centroids, f"first_{i}": level.first}
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        device = resolve_device(self.device)
        names = [(f"centroids_{level}", f"first_{level}") for level in range(self.num_levels)]
        self.levels = [Level(tensors[centroids].to(device), tensors[first].to(device)) for centroids, first in names]
        if any(level.first[-1] != len(level.centroids) for level in self.levels):
            raise ValueError("the centroids are not as many as the nodes have children")


def least_base(num_items: int, num_levels: int) -> int:
    """Smallest number whose power `num_levels` is at least `num_items`."""
    base = max(1, math.floor(num_items ** (1 / num_levels)) - 1)  # the root may be off by a rounding error
    while base**num_levels < num_items:
        base += 1
    return base
