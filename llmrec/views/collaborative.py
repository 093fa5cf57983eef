"""Collaborative view: items that users take near each other get near vectors.

Positive pointwise mutual information of items within a window of a training sequence, factorised by a truncated SVD
into U sqrt(S) (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS 2014, sections 4
and 5). Departures: there is no shift by log k, because the counts of a recommendation log are sparse already; an item
next to itself (a repeated visit) is not counted, because it says nothing about the similarity to other items.

Only `catalog.train` is read, so held-out items cannot influence the vectors that predict them.

Shapes: N items, T training interactions.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.runtime.console import say
from llmrec.views import View, describe

WINDOW = 5  # items on either side that co-occur with an item


def collaborative_view(catalog: Catalog, dim: int, window: int, seed: int) -> View:
    """Make vectors from co-occurrence in training sequences; items that co-occur with no other are missing.

    Args:
        catalog: Catalogue whose training examples are read.
        dim: Dimension of the vectors; smaller if there are fewer items.
        window: Number of items on either side that co-occur with an item.
        seed: Seed of the truncated SVD.

    Raises:
        ValueError: If no two items co-occur in the training sequences.
    """
    counts = cooccurrence(catalog.train, catalog.num_items, window)
    if counts.nnz == 0:
        raise ValueError(
            f"No two items co-occur within {window} steps of a training sequence of '{catalog.source}' "
            f"({len(catalog.train)} training sequences); leave 'collaborative' out of `views`."
        )
    rank = min(dim, catalog.num_items)
    if rank < dim:
        say(f"{catalog.num_items} items allow {rank} collaborative dimensions, not {dim}.")
    svd = TruncatedSVD(rank, random_state=seed)
    scaled = svd.fit_transform(positive_pmi(counts))  # (N, rank), U S
    vectors = scaled / np.sqrt(np.maximum(svd.singular_values_, np.finfo(np.float32).tiny))
    missing = np.diff(counts.indptr) == 0
    vectors[missing] = 0
    facts = describe("collaborative", catalog, encoder="ppmi-svd", window=window, dim=rank, seed=seed)
    return View(vectors.astype(np.float32), missing, facts)


def cooccurrence(train: Examples, num_items: int, window: int, is_asked: np.ndarray | None = None) -> sparse.csr_array:
    """Count how often each pair of items lies within `window` steps in one sequence.

    Args:
        train: Training examples.
        num_items: Number of items of the catalogue.
        window: Number of items on either side.
        is_asked: (N,) bool, items whose rows are wanted; only these rows are complete. All when left out.

    Returns:
        (N, N) float64, symmetric, zero diagonal.
    """
    items = np.insert(train.values, train.offsets[1:], train.targets)  # (T,) every sequence with its last item
    owner = np.repeat(np.arange(len(train)), np.diff(train.offsets) + 1)
    counts = sparse.csr_array((num_items, num_items))
    for distance in range(1, window + 1):
        left, right = items[:-distance], items[distance:]
        keep = (owner[:-distance] == owner[distance:]) & (left != right)
        if is_asked is not None:
            keep &= is_asked[left] | is_asked[right]
        pairs = (np.ones(keep.sum()), (left[keep], right[keep]))
        counts = counts + sparse.coo_array(pairs, shape=counts.shape).tocsr()
    return (counts + counts.T).tocsr()


def positive_pmi(counts: sparse.csr_array) -> sparse.csr_array:
    """Positive PMI, max(0, log P(i, j) / (P(i) P(j))), of a symmetric sparse matrix of counts."""
    pairs = counts.tocoo()
    marginal = np.asarray(counts.sum(axis=1)).ravel()
    pmi = np.log(pairs.data) + np.log(marginal.sum()) - np.log(marginal[pairs.row]) - np.log(marginal[pairs.col])
    result = sparse.csr_array((np.maximum(pmi, 0), (pairs.row, pairs.col)), shape=counts.shape)
    result.eliminate_zeros()
    return result
