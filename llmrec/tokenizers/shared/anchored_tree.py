"""A tree whose codes are directions that all parents share: the quantiser of GAOQ (gaoq.py).

Every level after the first has anchors, unit vectors. The code of a child is the anchor that the step from its
parent's centroid to its own is matched with; the children of the last level are single items.

Shapes: B vectors, L levels, C children and A anchors of a level, D dimension, P nodes or items that have a code, Q last
clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.kmeans import squared_distances
from llmrec.tokenizers.shared.tree import rows_of_nodes

NO_DIRECTION = 1e-6  # length of an offset to that of its parent's centroid or its own: below is rounding


class ClusterLevel(NamedTuple):
    """Children of all nodes of a level but the last; the child of code c of node p is node p C + c of the next level.

    Attributes:
        centroids: (P, C, D) float32, means of their items; zero where there is no child.
        there: (P, C) bool, False where a node has fewer children.
    """

    centroids: Tensor
    there: Tensor


@dataclass
class AnchoredTree:
    """Clusters of clusters, whose children have the anchors of their level as codes.

    Attributes:
        levels: All but the last, from the root down.
        anchors: (A, D) of each level but the first.
        sizes: Codes of each level.
    """

    levels: list[ClusterLevel]
    anchors: list[Tensor]
    sizes: list[int]

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return self.sizes

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 codes: of the nearest child at each level, then of the best anchor."""
        nodes_B, codes = torch.zeros(len(points_BD), dtype=torch.int64, device=points_BD.device), []
        for level in self.levels:
            codes_B = torch.empty_like(nodes_B)
            for rows in rows_of_nodes(nodes_B):
                node = nodes_B[rows[0]]
                cost_BC = squared_distances(points_BD[rows], level.centroids[node])
                codes_B[rows] = cost_BC.masked_fill(~level.there[node], torch.inf).argmin(1)
            codes.append(codes_B)
            nodes_B = nodes_B * level.there.shape[1] + codes_B
        codes.append(self.leaf_cosines(points_BD, nodes_B).argmax(1))
        return torch.stack(codes, dim=1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) centroids of the last clusters: the last code gives a direction only."""
        return self.levels[-1].centroids.flatten(0, 1)[self._leaves(codes_BL)]

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, A) one less the cosine, so that hungarian_leaf matches as `fit` does."""
        return 1 - self.leaf_cosines(points_BD, self._leaves(codes_BL))

    def _leaves(self, codes_BL: Tensor) -> Tensor:
        """(B,) last cluster that all codes but the last lead to."""
        nodes_B = torch.zeros_like(codes_BL[:, 0])
        for size, codes_B in zip(self.sizes[:-1], codes_BL.T, strict=False):
            nodes_B = nodes_B * size + codes_B
        return nodes_B

    def leaf_cosines(self, points_BD: Tensor, leaves_B: Tensor) -> Tensor:
        """(B, A) cosine of the steps from the leaves' centroids to the points with the anchors of the last level."""
        return offset_cosines(points_BD, self.levels[-1].centroids.flatten(0, 1)[leaves_B], self.anchors[-1])

    @torch.no_grad()
    def place(self, points_BD: Tensor, taken_PL: Tensor) -> Tensor:
        """Find free codes: of the nearest child with room at each level, then of the best free anchor.

        Args:
            points_BD: (B, D) vectors of new items, which take their turns in this order.
            taken_PL: (P, L) codes of the items there are.

        Returns:
            (B, L) int64 codes.

        Raises:
            ValueError: If there are fewer free codes than new items.
        """
        num_leaves, num_anchors = self.levels[-1].there.numel(), self.sizes[-1]
        free_QA = self.levels[-1].there.flatten()[:, None].repeat(1, num_anchors)  # Q last clusters
        free_QA[self._leaves(taken_PL), taken_PL[:, -1]] = False
        if int(free_QA.sum()) < len(points_BD):
            raise ValueError(
                f"{len(points_BD)} new items find no free last code: of the {num_leaves * num_anchors} places of "
                f"branching {self.sizes} {int(free_QA.sum())} are free. Run `llmrec tokenize` without append, with a "
                "larger last number, and train again; collision suffix_ordinal always has room for more."
            )
        room = [free_QA.view(*level.there.shape, -1).sum(2) for level in self.levels]  # (P, C) free below each child
        return torch.stack([self._place_one(point_D, free_QA, room) for point_D in points_BD])

    def _place_one(self, point_D: Tensor, free_QA: Tensor, room: list[Tensor]) -> Tensor:
        """(L,) codes of one new item, which are taken then."""
        node, codes = 0, []
        for level, room_PC in zip(self.levels, room, strict=True):
            cost_C = squared_distances(point_D[None], level.centroids[node])[0]
            codes.append(cost_C.masked_fill(room_PC[node] == 0, torch.inf).argmin())
            room_PC[node, codes[-1]] -= 1
            node = node * len(cost_C) + int(codes[-1])
        cosine_A = self.leaf_cosines(point_D[None], torch.tensor([node], device=point_D.device))[0]
        codes.append(cosine_A.masked_fill(~free_QA[node], -torch.inf).argmax())
        free_QA[node, codes[-1]] = False
        return torch.stack(codes)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        tensors: dict[str, Tensor] = {}
        for i, (level, anchors_AD) in enumerate(zip(self.levels, self.anchors, strict=True)):
            tensors |= {f"centroids_{i}": level.centroids, f"there_{i}": level.there, f"anchors_{i + 1}": anchors_AD}
        return tensors

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"level_sizes": self.sizes}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], sizes: list[int], device: torch.device) -> Self:
        """Read what `tensors` has saved.

        Raises:
            ValueError: If the clusters or anchors are not those of the sizes.
        """
        depths = range(len(sizes) - 1)
        nodes = [[math.prod(sizes[:i]), sizes[i]] for i in depths]
        levels = [ClusterLevel(tensors[f"centroids_{i}"].to(device), tensors[f"there_{i}"].to(device)) for i in depths]
        anchors = [tensors[f"anchors_{i + 1}"].to(device) for i in depths]
        num_anchors = [len(anchors_AD) for anchors_AD in anchors]
        if [list(level.there.shape) for level in levels] != nodes or num_anchors != sizes[1:]:
            raise ValueError(f"the clusters or anchors are not those of level sizes {sizes}")
        return cls(levels, anchors, sizes)


def anchors_of(num_anchors: int, dim: int, generator: torch.Generator) -> Tensor:
    """(A, D) float32 directions: orthonormal while there are dimensions for them, random unit vectors beyond.

    Source: ReSID, the columns of Q of the QR decomposition of a (D, A) Gaussian matrix.
    """
    gaussian_DA = torch.randn(dim, num_anchors, generator=generator)
    if num_anchors > dim:
        return normalize(gaussian_DA.T, dim=1)
    return torch.linalg.qr(gaussian_DA)[0].T.contiguous()


def offset_cosines(children_CD: Tensor, parents_CD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Cosine of the step from each parent to its child with each anchor; 0 where the two are one point.

    Args:
        children_CD: (C, D).
        parents_CD: (C, D), or (D,) for one parent of all.
        anchors_AD: (A, D) unit vectors.

    Returns:
        (C, A).
    """
    offsets_CD = children_CD - parents_CD
    length_C = offsets_CD.norm(dim=-1)
    real_C = length_C > NO_DIRECTION * torch.maximum(children_CD.norm(dim=-1), parents_CD.norm(dim=-1))
    return normalize(offsets_CD, dim=-1) @ anchors_AD.T * real_C[:, None]


def matched(cosine_CA: Tensor) -> Tensor:
    """(C,) distinct anchors of C <= A children at the largest sum of cosines, on the device of these."""
    return torch.from_numpy(linear_sum_assignment(cosine_CA.cpu().numpy(), maximize=True)[1]).to(cosine_CA.device)
