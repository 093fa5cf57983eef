"""A tree of centroids, which a vector descends by the nearest child of each node.

Shapes: B vectors, L levels, D dimension, K most children of a node of the last level, P nodes of a level, Q = all their
children.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.kmeans import nearest, squared_distances


class TreeLevel(NamedTuple):
    """Children of all nodes of a level, one after another; the place of a child is its node at the next level.

    Attributes:
        centroids: (Q, D) float32.
        first: (P + 1,) int64; the children of node p stand at `first[p]` to `first[p + 1]`.
    """

    centroids: Tensor
    first: Tensor


@dataclass
class Tree:
    """Centroids of the parts; a vector descends to the nearest child.

    Attributes:
        levels: From the root down.
        sizes: Of each level, the most children of a node.
    """

    levels: list[TreeLevel]
    sizes: list[int]

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return self.sizes

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 number of the nearest child at each level."""
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
        """(B, D) centroids of the parts that codes lead to."""
        return self.levels[-1].centroids[self._nodes(codes_BL, len(self.levels))]

    def _nodes(self, codes_BL: Tensor, depth: int) -> Tensor:
        """(B,) node that the first `depth` codes lead to."""
        nodes_B = torch.zeros_like(codes_BL[:, 0])
        for level, codes_B in zip(self.levels[:depth], codes_BL.T, strict=False):
            nodes_B = level.first[nodes_B] + codes_B
        return nodes_B

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) squared distances to the children of each parent; infinite for those that it does not have."""
        cost_BK = points_BD.new_full((len(points_BD), self.sizes[-1]), torch.inf)
        nodes_B, level = self._nodes(codes_BL, len(self.levels) - 1), self.levels[-1]
        for rows in rows_of_nodes(nodes_B):
            begin, end = level.first[nodes_B[rows[0]] :][:2].tolist()
            cost_BK[rows, : end - begin] = squared_distances(points_BD[rows], level.centroids[begin:end])
        return cost_BK

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        named = ({f"centroids_{i}": level.centroids, f"first_{i}": level.first} for i, level in enumerate(self.levels))
        return {name: tensor for level in named for name, tensor in level.items()}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"level_sizes": self.sizes}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], level_sizes: list[int], device: torch.device) -> Self:
        """Read what `tensors` has saved.

        Raises:
            ValueError: If the centroids are not as many as the nodes have children.
        """
        names = [(f"centroids_{level}", f"first_{level}") for level in range(len(level_sizes))]
        levels = [TreeLevel(tensors[centroids].to(device), tensors[first].to(device)) for centroids, first in names]
        if any(level.first[-1] != len(level.centroids) for level in levels):
            raise ValueError("the centroids are not as many as the nodes have children")
        return cls(levels, level_sizes)


def rows_of_nodes(nodes_N: Tensor) -> tuple[Tensor, ...]:
    """Places of the points of each node that has any, node by node in ascending order."""
    order_N = nodes_N.argsort(stable=True)
    return order_N.split(nodes_N.unique(return_counts=True)[1].tolist())
