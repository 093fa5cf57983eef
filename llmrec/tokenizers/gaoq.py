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
from llmrec.tokenizers.shared.anchored_tree import AnchoredTree, ClusterLevel, anchors_of, matched, offset_cosines
from llmrec.tokenizers.shared.assigned import AssignedCodes
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.kmeans import code_means
from llmrec.tokenizers.shared.tree import rows_of_nodes
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews

LEAF_ITEMS = 15  # of a last cluster; ReSID has 13 to 19 on its four smallest sets, 5 to 16 on the others
WIDENING = 2  # children of the second level to one of the first; ReSID has 1 to 3.3 on nine of its ten sets


@dataclass(kw_only=True)
class GAOQ(ItemTokenizer):
    """Balanced clusters of clusters, coded by anchors."""

    method: ClassVar[str] = "gaoq"
    reads_all_items: ClassVar[bool] = True

    view_weights: list[float] | None = options.view_weights()
    iterations: int = options.kmeans_iterations(25)
    # ReSID has one such triple per dataset, from 32 40 19 (Musical Instruments) to 256 256 8 (Books).
    branching: list[int] | None = option(
        "Number of children of a node at each level; when left out, three numbers that end in clusters of 15 items.",
        None,
        least=2,
    )

    def problems(self) -> list[str]:
        branching = self.branching
        too_few = branching is not None and len(branching) < 2
        return [f"branching is {branching}; give two levels or more, each a number above 1"] if too_few else []

    def planned_sizes(self, num_items: int) -> list[int]:
        """Compute the codes of each level.

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

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        sizes = self.planned_sizes(catalog.num_items)
        # Nodes may have fewer items than children.
        points_ND = vectors.to_fit(2, all_items=self.holds_all_items).to(device)
        tree, codes_NL = grow_anchored_tree(points_ND, sizes, self.iterations, torch.Generator().manual_seed(self.seed))
        unknown_BD = points_ND.new_zeros(int((~vectors.known).sum()), points_ND.shape[1])
        self.coder = VectorCoder(vectors.dims, tree, device, self.view_weights)
        self.coder.assign(vectors, codes_NL, tree.place(unknown_BD, codes_NL) if len(unknown_BD) else None)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        device = resolve_device(self.device)
        tree, assigned = AnchoredTree.restored(tensors, facts["level_sizes"], device), AssignedCodes.restored(tensors)
        self.coder = VectorCoder(facts["view_dims"], tree, device, self.view_weights, assigned=assigned)


def grow_anchored_tree(
    points_ND: Tensor, sizes: list[int], iterations: int, generator: torch.Generator
) -> tuple[AnchoredTree, Tensor]:
    """Split points into balanced clusters of clusters, and match children and single points to anchors.

    Args:
        points_ND: (N, D) on any device.
        sizes: Codes of each level.
        iterations: k-means iterations per node.
        generator: CPU generator.

    Returns:
        The tree, and (N, L) int64 codes of the points, all distinct.
    """
    anchors = [anchors_of(size, points_ND.shape[1], generator).to(points_ND.device) for size in sizes[1:]]
    tree, codes = AnchoredTree([], anchors, sizes), []
    nodes_N = torch.zeros(len(points_ND), dtype=torch.int64, device=points_ND.device)
    for size in progress(sizes[:-1], "k-means", unit="levels"):
        level, codes_N = _split(points_ND, nodes_N, size, tree, iterations, generator)
        tree.levels.append(level)
        codes.append(codes_N)
        nodes_N = nodes_N * size + codes_N
    leaf_codes_N = torch.empty_like(nodes_N)
    for rows_B in rows_of_nodes(nodes_N):  # each item is a child of its own
        leaf_codes_N[rows_B] = matched(tree.leaf_cosines(points_ND[rows_B], nodes_N[rows_B]))
    return tree, torch.stack([*codes, leaf_codes_N], dim=1)


def _split(
    points_ND: Tensor,
    nodes_N: Tensor,
    size: int,
    tree: AnchoredTree,
    iterations: int,
    generator: torch.Generator,
) -> tuple[ClusterLevel, Tensor]:
    """Children of every node below a tree that is being grown, and (N,) code of the child of each point."""
    depth, codes_N = len(tree.levels), torch.empty_like(nodes_N)
    num_nodes = math.prod(tree.sizes[:depth])
    centroids_PCD = points_ND.new_zeros(num_nodes, size, points_ND.shape[1])
    there_PC = torch.zeros(num_nodes, size, dtype=torch.bool, device=points_ND.device)
    for rows_B in rows_of_nodes(nodes_N):
        node = int(nodes_N[rows_B[0]])
        children_CD, child_B = _children(points_ND[rows_B], size, iterations, generator)
        code_C = torch.arange(len(children_CD), device=child_B.device)
        if depth > 0:
            parent_D = tree.levels[-1].centroids.flatten(0, 1)[node]
            code_C = matched(offset_cosines(children_CD, parent_D, tree.anchors[depth - 1]))
        codes_N[rows_B] = code_C[child_B]
        centroids_PCD[node, code_C], there_PC[node, code_C] = children_CD, True
    return ClusterLevel(centroids_PCD, there_PC), codes_N


def _children(points_BD: Tensor, size: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(C, D) centroids and (B,) number of the child that each point of one node belongs to."""
    if len(points_BD) <= size:
        return points_BD, torch.arange(len(points_BD), device=points_BD.device)
    codebook_CD, child_B = balanced_kmeans(points_BD, size, iterations, generator)
    return code_means(points_BD, child_B, codebook_CD)[0], child_B


def derived_branching(num_items: int) -> list[int]:
    """Three levels that end in clusters of LEAF_ITEMS, the second WIDENING times as wide as the first.

    Source: ReSID's choices, e.g. 32 40 19 and 32 64 13; it gives no rule. Its last number, as here, is N / (b1 b2).
    """
    clusters = num_items / LEAF_ITEMS
    first = max(2, round(math.sqrt(clusters / WIDENING)))
    second = max(2, math.ceil(clusters / first))
    return [first, second, max(2, math.ceil(num_items / (first * second)))]
