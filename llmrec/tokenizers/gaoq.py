"""GAOQ, globally aligned orthogonal quantisation: balanced clusters of clusters whose codes mean the same everywhere.

Items are split as in hierarchical k-means, and the last split leaves single items. But a child's code is not its number
among its siblings: every level after the first has anchors, orthonormal directions that all parents share, and the
children of a parent take distinct anchors, matched so that the steps from the parent's centroid to theirs agree with
them best in cosine (Hungarian method). So a code stands for about the same step under any parent, and semantic IDs are
distinct by construction. Source: ReSID (arXiv:2602.02338); its code has not been read.

Left open by the paper: the balanced split is solved by balanced.py, as in hierarchical_kmeans. A level with more
anchors than dimensions cannot have orthonormal ones and gets random unit vectors; a parent with fewer children than
anchors uses the best of them; an only child has no direction and takes any. Items that no view knows take places that
are left, those nearest to the zero vector first. New items go to the nearest child, and in the last cluster to the
anchor that they point to most. Beside published items, with the policy hungarian_leaf, they go to the nearest child
with room below it and a free anchor there: clusters of ceil(N / (b1 b2)) places are almost full. A level of overflow is
what suffix_if_collided gives.

Shapes: N items, B points of a node or a chunk, L levels, C children and A anchors of a level, D dimension, P nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import progress
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.kmeans import code_means, squared_distances
from llmrec.tokenizers.shared.splits import SplittingTokenizer, rows_of_nodes
from llmrec.tokenizers.shared.vectors import require_distinct
from llmrec.views import ItemViews

LEAF_ITEMS = 15  # of a last cluster; ReSID has 13 to 19 on its four smallest sets, 5 to 16 on the others
WIDENING = 2  # children of the second level to one of the first; ReSID has 1 to 3.3 on nine of its ten sets
NO_DIRECTION = 1e-6  # length of an offset to that of its parent's centroid or its own: below is rounding


class Level(NamedTuple):
    """Children of all nodes of a level but the last; the child of code c of node p is node p C + c of the next level.

    Attributes:
        centroids: (P, C, D) float32, means of their items; zero where there is no child.
        there: (P, C) bool, False where a node has fewer children.
    """

    centroids: Tensor
    there: Tensor


@dataclass(kw_only=True)
class GAOQ(SplittingTokenizer):
    """Balanced clusters of clusters, coded by anchors."""

    method: ClassVar[str] = "gaoq"

    # ReSID has one such triple per dataset, from 32 40 19 (Musical Instruments) to 256 256 8 (Books).
    branching: list[int] | None = option(
        "Children of a node at each level; when left out, three numbers that end in clusters of 15 items.", None
    )

    def __post_init__(self):
        super().__post_init__()
        self.levels: list[Level] = []
        self.anchors: list[Tensor] = []  # (A, D) of each level but the first

    def problems(self) -> list[str]:
        problems, branching = super().problems(), self.branching
        if branching is not None and (len(branching) < 2 or min(branching) < 2):
            problems.append(f"branching is {branching}; give two levels or more, each a number above 1")
        return problems

    def planned_sizes(self, num_items: int) -> list[int]:
        """Codes of each level.

        Raises:
            ValueError: If `branching` has fewer places than there are items.
        """
        sizes = self.branching or derived_branching(num_items)
        if math.prod(sizes) < num_items:
            *first, last = sizes
            raise ValueError(
                f"branching {sizes} has {math.prod(sizes)} places for {num_items} items, and every item needs one of "
                f"its own. Make the last number {math.ceil(num_items / math.prod(first))} instead of {last}, or leave "
                f"branching out, which gives {derived_branching(num_items)}."
            )
        return sizes

    def learn(self, points_ND: Tensor) -> None:
        require_distinct(points_ND, 2)  # a node with fewer items than children has fewer children
        device, generator = resolve_device(self.device), torch.Generator().manual_seed(self.seed)
        points_ND = points_ND.to(device)
        self.anchors = [anchors_of(size, points_ND.shape[1], generator).to(device) for size in self.sizes[1:]]
        self.levels, codes, nodes_N = [], [], torch.zeros(len(points_ND), dtype=torch.int64, device=device)
        for size in progress(self.sizes[:-1], "k-means", unit="levels"):
            codes.append(self._split(points_ND, nodes_N, size, generator))
            nodes_N = nodes_N * size + codes[-1]
        codes.append(self._leaf_codes(points_ND, nodes_N))
        self.assigned_NL = torch.stack(codes, dim=1).cpu()

    def _split(self, points_ND: Tensor, nodes_N: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Append the level of `size` children per node; (N,) code of the child that each point belongs to."""
        depth, codes_N = len(self.levels), torch.empty_like(nodes_N)
        num_nodes = math.prod(self.sizes[:depth])
        centroids_PCD = points_ND.new_zeros(num_nodes, size, points_ND.shape[1])
        there_PC = torch.zeros(num_nodes, size, dtype=torch.bool, device=points_ND.device)
        for rows_B in rows_of_nodes(nodes_N):
            node = int(nodes_N[rows_B[0]])
            children_CD, child_B = self._children(points_ND[rows_B], size, generator)
            code_C = torch.arange(len(children_CD), device=child_B.device)
            if depth > 0:
                parent_D = self.levels[-1].centroids.flatten(0, 1)[node]
                code_C = matched(offset_cosines(children_CD, parent_D, self.anchors[depth - 1]))
            codes_N[rows_B] = code_C[child_B]
            centroids_PCD[node, code_C], there_PC[node, code_C] = children_CD, True
        self.levels.append(Level(centroids_PCD, there_PC))
        return codes_N

    def _children(self, points_BD: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(C, D) centroids and (B,) which child each point of one node belongs to."""
        if len(points_BD) <= size:
            return points_BD, torch.arange(len(points_BD), device=points_BD.device)
        codebook_CD, child_B = balanced_kmeans(points_BD, size, self.iterations, generator, solver="prices")
        return code_means(points_BD, child_B, codebook_CD)[0], child_B

    def _leaf_codes(self, points_ND: Tensor, leaves_N: Tensor) -> Tensor:
        """(N,) last codes, distinct within a leaf: each item is a child of its own."""
        codes_N = torch.empty_like(leaves_N)
        for rows_B in rows_of_nodes(leaves_N):
            codes_N[rows_B] = matched(self._leaf_cosines(points_ND[rows_B], leaves_N[rows_B]))
        return codes_N

    def _leaf_cosines(self, points_BD: Tensor, leaves_B: Tensor) -> Tensor:
        """(B, A) cosine of the steps from the leaves' centroids to the points with the anchors of the last level."""
        return offset_cosines(points_BD, self.levels[-1].centroids.flatten(0, 1)[leaves_B], self.anchors[-1])

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        encoded, device = super().encode(catalog, views), resolve_device(self.device)

        def place(rows: np.ndarray, taken_PL: np.ndarray) -> np.ndarray:
            return self.place(encoded.vectors(rows).to(device), torch.from_numpy(taken_PL).to(device)).cpu().numpy()

        return replace(encoded, place=place)

    @torch.no_grad()
    def place(self, points_BD: Tensor, taken_PL: Tensor) -> Tensor:
        """Codes that nobody has: of the nearest child with room at each level, then of the best free anchor.

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
        cosine_A = self._leaf_cosines(point_D[None], torch.tensor([node], device=point_D.device))[0]
        codes.append(cosine_A.masked_fill(~free_QA[node], -torch.inf).argmax())
        free_QA[node, codes[-1]] = False
        return torch.stack(codes)

    def codes_of(self, points_BD: Tensor) -> Tensor:
        nodes_B, codes = torch.zeros(len(points_BD), dtype=torch.int64, device=points_BD.device), []
        for level in self.levels:
            codes_B = torch.empty_like(nodes_B)
            for rows in rows_of_nodes(nodes_B):
                node = nodes_B[rows[0]]
                cost_BC = squared_distances(points_BD[rows], level.centroids[node])
                codes_B[rows] = cost_BC.masked_fill(~level.there[node], torch.inf).argmin(1)
            codes.append(codes_B)
            nodes_B = nodes_B * level.there.shape[1] + codes_B
        codes.append(self._leaf_cosines(points_BD, nodes_B).argmax(1))
        return torch.stack(codes, dim=1)

    def codes_without_vector(self, nearest_BL: Tensor) -> Tensor:
        """Places that the other items have left, so that each has one of its own."""
        nothing_BD = self.anchors[0].new_zeros(len(nearest_BL), self.anchors[0].shape[1])
        return self.place(nothing_BD, self.assigned_NL.to(nothing_BD.device)).cpu() if len(nearest_BL) else nearest_BL

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """Centroids of the last clusters: the last code gives a direction only."""
        return self.levels[-1].centroids.flatten(0, 1)[self._leaves(codes_BL)]

    def _leaves(self, codes_BL: Tensor) -> Tensor:
        """(B,) last cluster that all codes but the last lead to."""
        nodes_B = torch.zeros_like(codes_BL[:, 0])
        for size, codes_B in zip(self.sizes[:-1], codes_BL.T, strict=False):
            nodes_B = nodes_B * size + codes_B
        return nodes_B

    def cost_after(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """One less the cosine, so that hungarian_leaf matches as `fit` does."""
        return 1 - self._leaf_cosines(points_BD, self._leaves(codes_BL))

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        for i, (level, anchors_AD) in enumerate(zip(self.levels, self.anchors, strict=True)):
            tensors |= {f"centroids_{i}": level.centroids, f"there_{i}": level.there, f"anchors_{i + 1}": anchors_AD}
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        device = resolve_device(self.device)
        depths = range(len(self.sizes) - 1)
        nodes = [[math.prod(self.sizes[:i]), self.sizes[i]] for i in depths]
        self.levels = [Level(tensors[f"centroids_{i}"].to(device), tensors[f"there_{i}"].to(device)) for i in depths]
        self.anchors = [tensors[f"anchors_{i + 1}"].to(device) for i in depths]
        num_anchors = [len(anchors_AD) for anchors_AD in self.anchors]
        if [list(level.there.shape) for level in self.levels] != nodes or num_anchors != self.sizes[1:]:
            raise ValueError(f"the clusters or anchors are not those of level sizes {self.sizes}")


def derived_branching(num_items: int) -> list[int]:
    """Three levels that end in clusters of LEAF_ITEMS, the second WIDENING times as wide as the first.

    Source: ReSID's choices, e.g. 32 40 19 and 32 64 13; it gives no rule. Its last number, as here, is N / (b1 b2).
    """
    clusters = num_items / LEAF_ITEMS
    first = max(2, round(math.sqrt(clusters / WIDENING)))
    second = max(2, math.ceil(clusters / first))
    return [first, second, max(2, math.ceil(num_items / (first * second)))]


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
