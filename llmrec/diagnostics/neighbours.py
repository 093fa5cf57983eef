"""Preservation of neighbours by quantised vectors and by common prefixes, and quality of the reconstruction.

The hit rate of neighbours by quantised vectors is that of FORGE (arXiv:2509.20904), whose embedding hit rate correlates
with the quality of the generated items. Departures: neighbours by text are measured as well as those by behaviour, and
common prefixes, which a generator sees, as well as vectors. Each hit rate is reported with that of the vectors before
quantisation, which is the upper limit to expect, and that of chance. Items that are equally near share the last of the
k places in expectation: prefixes have many such ties, and items that collide have equal reconstructions.

Shapes: M items of the sample, Q of them queries, B queries at once, k neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.diagnostics.sample import Sample, Similarity, blocks, common_prefixes, cosines
from llmrec.runtime.manifest import JsonObject
from llmrec.views import ItemViews
from llmrec.views.collaborative import cooccurrence

K = 10
WINDOW = 5  # items on either side in a sequence are behaviour neighbours, as in the collaborative view
BATCH = 1024  # items among which a reconstruction is identified, as in SimCIT
TEXT = "text"  # the view that decides text neighbours
TIE = 1e-5  # tolerance for rounding, which may differ between equal vectors, depending on the BLAS


def neighbour_report(
    catalog: Catalog, views: ItemViews | None, codes_ML: np.ndarray, sample: Sample, seed: int
) -> JsonObject:
    """Measure the share of an item's neighbours that are among its k nearest items.

    Args:
        catalog: Catalogue whose training sequences decide which items are behaviour neighbours.
        views: Views of the items; view 'text' decides which items are text neighbours.
        codes_ML: (M, L) codes of the sample.
        sample: Sampled items.
        seed: Seed of the choice among equally frequent behaviour neighbours.

    Returns:
        k, and for `behaviour` and `text`: the number of queries with such neighbours, and the hit rate by
        `vectors`, `quantised` vectors, `prefix` and `random`; None for a measure that does not exist.
    """
    similarity = {
        "vectors": None if sample.vectors is None else cosines(sample.vectors),
        "quantised": None if sample.reconstruction is None else cosines(sample.reconstruction),
        "prefix": common_prefixes(codes_ML),
    }
    k = min(K, len(sample.rows) - 1)
    report: JsonObject = {"k": K, "behaviour": None, "text": None}
    if k < 1:
        return report
    neighbours = {"behaviour": behaviour_neighbours(catalog, sample, seed)}
    if views is not None and TEXT in views:
        view = views[TEXT]
        vectors, missing = torch.from_numpy(view.vectors[sample.rows]), torch.from_numpy(view.missing[sample.rows])
        neighbours["text"] = nearest_items(cosines(vectors), sample.queries, len(sample.rows), k, missing)
    for kind, neighbours_Qk in neighbours.items():
        queries = int((neighbours_Qk >= 0).any(dim=1).sum())
        if queries:
            rates = {
                name: None if of is None else hit_rate(of, sample.queries, neighbours_Qk, k)
                for name, of in similarity.items()
            }
            report[kind] = {"queries": queries, **rates, "random": k / (len(sample.rows) - 1)}
    return report


def reconstruction_report(sample: Sample) -> JsonObject | None:
    """Compare the vectors with their reconstructions from the codes.

    Returns:
        cosine: mean cosine of a vector and its reconstruction. knn_overlap: share of the k nearest by vectors that are
        among the k nearest by reconstructions; knn_overlap_random: the same by chance. separability: share of the
        reconstructions whose nearest vector among `batch` items is their own, 1 / batch by chance. None instead of all
        without reconstructions; the last three are None for a single item.

    Source: separability after the contrastive objective of SimCIT (arXiv:2506.16683), on the tokenizer's own vectors.
    """
    num_items = len(sample.rows)
    if sample.vectors is None or sample.reconstruction is None or num_items == 0:
        return None
    k = min(K, num_items - 1)
    report: JsonObject = {
        "cosine": float(torch.cosine_similarity(sample.vectors, sample.reconstruction).mean()),
        "k": K,
        "knn_overlap": None,
        "knn_overlap_random": None,
        "separability": None,
        "batch": min(BATCH, len(sample.queries)),
    }
    if k < 1:
        return report
    neighbours_Qk = nearest_items(cosines(sample.vectors), sample.queries, num_items, k)
    report["knn_overlap"] = hit_rate(cosines(sample.reconstruction), sample.queries, neighbours_Qk, k)
    report["knn_overlap_random"] = k / (num_items - 1)
    batch = report["batch"]
    whole = sample.queries[: len(sample.queries) // batch * batch].reshape(-1, batch)
    shares = [separability(sample.vectors[positions], sample.reconstruction[positions]) for positions in whole]
    return {**report, "separability": float(np.mean(shares))}


def hit_rate(similarity: Similarity, queries: np.ndarray, neighbours_Qk: Tensor, k: int) -> float:
    """Share of a query's neighbours among its k most similar other items, as a mean over queries with neighbours.

    Args:
        similarity: Positions (B,) -> (B, M).
        queries: (Q,) positions in the sample.
        neighbours_Qk: (Q, any) positions of neighbours, -1 after the last one.
        k: At most M - 1.

    Returns:
        In [0, 1]; items that tie for the last places share them, so it is the expectation over a random order.
    """
    shares, done = [], 0
    num_items = similarity(queries[:1]).shape[1]
    for block in blocks(queries, num_items):
        neighbours, done = neighbours_Qk[done : done + len(block)], done + len(block)
        similar_BM = _of_others(similarity, block)
        first_Bk = similar_BM.topk(k, dim=1).values
        last_B1 = first_Bk[:, -1:]
        above_B1 = (first_Bk > last_B1 + TIE).sum(dim=1, keepdim=True)
        tied_B1 = (similar_BM >= last_B1 - TIE).sum(dim=1, keepdim=True) - above_B1
        similar = similar_BM.gather(1, neighbours.clamp(min=0))
        chance = torch.where(similar > last_B1 + TIE, 1.0, (k - above_B1) / tied_B1)
        hits = torch.where((similar >= last_B1 - TIE) & (neighbours >= 0), chance, 0.0)
        has = (neighbours >= 0).sum(dim=1)
        shares.append((hits.sum(dim=1) / has)[has > 0])
    return float(torch.cat(shares).mean())


def behaviour_neighbours(catalog: Catalog, sample: Sample, seed: int) -> Tensor:
    """The items of the sample that are most often within WINDOW of each query in the training sequences.

    Returns:
        (Q, K) int64 positions in the sample, -1 if an item has fewer neighbours.
    """
    rows, rng = sample.rows, np.random.default_rng(seed)
    is_query = np.zeros(catalog.num_items, bool)
    is_query[rows[sample.queries]] = True
    counts = cooccurrence(catalog.train, catalog.num_items, WINDOW, is_query)[rows[sample.queries]][:, rows]
    counts.data = counts.data + rng.random(counts.nnz)  # counts are integers, so this only orders equal ones
    neighbours_Qk = np.full((len(sample.queries), K), -1)
    for query, (start, end) in enumerate(zip(counts.indptr, counts.indptr[1:], strict=False)):
        most = np.argsort(-counts.data[start:end])[:K]
        neighbours_Qk[query, : len(most)] = counts.indices[start:end][most]
    return torch.from_numpy(neighbours_Qk)


def nearest_items(
    similarity: Similarity, queries: np.ndarray, num_items: int, k: int, missing: Tensor | None = None
) -> Tensor:
    """The k most similar other items of each query.

    Returns:
        (Q, k) int64 positions; -1 for a missing query, and in place of missing items.
    """
    nearest = []
    for block in blocks(queries, num_items):
        similar_BM = _of_others(similarity, block)
        if missing is not None:
            similar_BM[:, missing] = -torch.inf
            similar_BM[missing[block]] = -torch.inf
        values, positions = similar_BM.topk(k, dim=1)
        nearest.append(positions.masked_fill(values == -torch.inf, -1))
    return torch.cat(nearest)


def separability(vectors_BD: Tensor, reconstruction_BD: Tensor) -> float:
    """Share of the reconstructions whose most similar vector is their own; tied vectors share the credit."""
    unit_BD = torch.nn.functional.normalize(vectors_BD, dim=1)
    similar_BB = torch.nn.functional.normalize(reconstruction_BD, dim=1) @ unit_BD.T
    nearest = similar_BB >= similar_BB.amax(dim=1, keepdim=True) - TIE
    return float((nearest.diagonal() / nearest.sum(dim=1)).mean())


def _of_others(similarity: Similarity, positions: np.ndarray) -> Tensor:
    """(B, M) similarities, -inf to itself."""
    similar_BM = similarity(positions)
    similar_BM[torch.arange(len(positions)), torch.from_numpy(positions)] = -torch.inf
    return similar_BM
