"""P5-CID: collaborative ids. Items that users take together share a prefix; only training interactions are read.

The graph of items has an edge for every two items of a user's training sequence, however far apart, weighted by how
often that happens. Spectral clustering cuts it into clusters, each cluster is cut again, and one of at most `leaf_size`
items is a leaf, in which every item has its ordinal. So semantic IDs differ in length, no two are equal, and none is a
prefix of another. Items that occur with no other form one cluster of their own.

Sources: "How to Index Item IDs" (arXiv:2305.06569) and its code, whose tokens belong to one path; OpenP5
(arXiv:2306.11134), whose tokens are reused by all branches. Departures: a level has tokens of its own here, so that a
reused token means nothing at another depth; clusters without co-occurrences, and those still too large after MAX_SPLITS
splits, are cut into equal parts, so that every tree ends.

Shapes: N items, M items of a cluster, T training interactions, L levels, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY
from llmrec.tokenizers.base import Encoded, ItemTokenizer
from llmrec.tokenizers.shared.assigned import find_keys, item_keys
from llmrec.views import ItemViews

MAX_SPLITS = 8  # Beauty needs 4 at 20 clusters and leaves of 64; each further one is another token per item
UNIFORM = 1e-6  # affinity of every two items, so that a graph in several pieces has a spectrum to cut by
DENSE = 1024  # largest cluster whose matrix is decomposed as a whole; 512, the most clusters, is well below


@dataclass
class CodeTable:
    """Codes of the fitted items, by item id; other items have none.

    Attributes:
        codes_NL: (N, L) int64, -1 beyond the end of a semantic ID.
        keys_N: (N,) int64 `item_keys` of the items.
    """

    codes_NL: np.ndarray
    keys_N: np.ndarray

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return (self.codes_NL.max(axis=0) + 1).tolist()

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads."""
        return []

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its codes; see `ItemTokenizer.encode`."""
        found_N, place_N = find_keys(item_keys(catalog.item_ids), self.keys_N)
        if not found_N.all():
            first = catalog.item_ids[int(found_N.argmin())]
            raise ValueError(
                f"'{catalog.source}' has {(~found_N).sum()} items that p5_cid was not fitted on, first '{first}'; it "
                "cannot place items that nobody has taken yet. Fit it again once they have training interactions, or "
                "use a method that reads views, such as rq_kmeans."
            )
        return Encoded(self.codes_NL[place_N])

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {"codes": torch.from_numpy(self.codes_NL), "item_keys": torch.from_numpy(self.keys_N)}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {}


@dataclass(kw_only=True)
class P5CID(ItemTokenizer):
    """Recursive spectral clustering of co-occurrences."""

    method: ClassVar[str] = "p5_cid"
    needs_views: ClassVar[bool] = False

    # Said to be usual in OpenP5, as is a leaf of 500.
    clusters: int = option("Number of clusters that a cluster is cut into.", 20, least=2, most=512)
    # Ours: of the 13.6 bits that tell Beauty's items apart, 500 would leave 9 to an ordinal, which has no meaning.
    leaf_size: int = option("Largest number of items of a cluster that is not cut again.", 64, least=1)
    # OpenP5.
    tokens: Literal["shared", "path_unique"] = option(
        "Codes of clusters: shared, the number within the parent, or path_unique, a code of its own for every cluster "
        "of a level.",
        "shared",
    )

    def planned_sizes(self, num_items: int) -> None:
        return None

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        counts = all_pairs(catalog.train, catalog.num_items)
        if counts.nnz == 0:
            raise ValueError(
                f"No two items occur in one training sequence of '{catalog.source}' ({len(catalog.train)} training "
                "rows), and p5_cid knows items by nothing else. Use a method that reads views, such as rq_kmeans."
            )
        self.coder = CodeTable(self._tree(counts), item_keys(catalog.item_ids))
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        codes_NL, keys_N = tensors["codes"].numpy(), tensors["item_keys"].numpy()
        if len(codes_NL) != len(keys_N):
            raise ValueError(f"codes of {len(codes_NL)} items, keys of {len(keys_N)}")
        self.coder = CodeTable(codes_NL, keys_N)

    def _tree(self, counts: sparse.csr_array) -> np.ndarray:
        """(N, L) int64 codes, -1 beyond the end; clusters are cut level by level."""
        levels: list[np.ndarray] = []
        clusters = [np.arange(counts.shape[0])]
        while clusters:
            codes_N, ordinal_N = (np.full(counts.shape[0], EMPTY) for _ in range(2))
            children: list[np.ndarray] = []
            for cluster in clusters:
                if len(cluster) <= self.leaf_size:
                    ordinal_N[cluster] = np.arange(len(cluster))
                    continue
                for number, child in enumerate(self._cut(counts, cluster, len(levels))):
                    codes_N[child] = number if self.tokens == "shared" else len(children)
                    children.append(child)
            before = 0 if self.tokens == "shared" else len(children)  # an ordinal shares no token with a cluster
            levels.append(np.where(ordinal_N == EMPTY, codes_N, before + ordinal_N))
            clusters = children
        return np.stack(levels, axis=1)

    def _cut(self, counts: sparse.csr_array, cluster: np.ndarray, depth: int) -> list[np.ndarray]:
        """Parts of a cluster; at the root, the last one holds the items that occur with no other."""
        inside = counts[cluster][:, cluster]
        linked_M = np.diff(inside.indptr) > 0
        if depth == 0 and not linked_M.all():
            linked = cluster[linked_M]
            return [*self._cut(counts, linked, depth), cluster[~linked_M]]
        if linked_M.any() and depth < MAX_SPLITS:
            labels_M = spectral_labels(inside, min(self.clusters, len(cluster)), self.seed)
            parts = [cluster[labels_M == label] for label in np.unique(labels_M)]
            if len(parts) > 1:
                return parts
        return np.array_split(cluster, min(self.clusters, -(-len(cluster) // self.leaf_size)))


def all_pairs(train: Examples, num_items: int) -> sparse.csr_array:
    """Count how often each two items occur in one training sequence, at any distance.

    Returns:
        (N, N) float64, symmetric, zero diagonal.
    """
    items = np.insert(train.values, train.offsets[1:], train.targets)  # (T,) every sequence with its last item
    owner = np.repeat(np.arange(len(train)), np.diff(train.offsets) + 1)
    taken = sparse.coo_array((np.ones(len(items)), (owner, items)), shape=(len(train), num_items)).tocsr()
    counts = (taken.T @ taken).tocoo()
    apart = counts.row != counts.col
    pairs = (counts.data[apart], (counts.row[apart], counts.col[apart]))
    return sparse.coo_array(pairs, shape=counts.shape).tocsr()


def spectral_labels(affinity: sparse.csr_array, num_clusters: int, seed: int) -> np.ndarray:
    """Cluster of each item of a graph, by the first eigenvectors of its normalised Laplacian.

    Args:
        affinity: (M, M) symmetric; UNIFORM is added to every entry.
        num_clusters: C, at most M.
        seed: Of the start vector of the iteration.

    Returns:
        (M,) int64 labels below C, of which some may have no item.

    Source: scikit-learn's SpectralClustering with assign_labels "cluster_qr" (Damle, Minden and Ying, 2019), which
        would make a matrix with the uniform affinity dense; here that is a product of two vectors.
    """
    size = affinity.shape[0]
    scale_M = (np.asarray(affinity.sum(axis=1)).ravel() + UNIFORM * size) ** -0.5
    scaled = sparse.diags_array(scale_M) @ affinity @ sparse.diags_array(scale_M)
    if size <= DENSE:
        matrix = scaled.toarray() + UNIFORM * np.outer(scale_M, scale_M)
        vectors_MC = linalg.eigh(matrix, subset_by_index=[size - num_clusters, size - 1])[1]
    else:
        operator = LinearOperator(
            scaled.shape, matvec=lambda x: scaled @ x.ravel() + UNIFORM * scale_M * (scale_M @ x), dtype=np.float64
        )
        start_M = np.random.default_rng(seed).standard_normal(size)
        vectors_MC = eigsh(operator, num_clusters, which="LA", v0=start_M, tol=1e-6)[1]
    return cluster_qr(vectors_MC * scale_M[:, None])


def cluster_qr(vectors_MC: np.ndarray) -> np.ndarray:
    """(M,) cluster of each row: pivoted QR picks one row per cluster, and the others go to the one they point along."""
    pivots = linalg.qr(vectors_MC.T, pivoting=True, mode="economic")[2][: vectors_MC.shape[1]]
    left, _, right = linalg.svd(vectors_MC[pivots].T)
    return np.abs(vectors_MC @ (left @ right)).argmax(axis=1)
