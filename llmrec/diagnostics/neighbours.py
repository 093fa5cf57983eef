"""Whether what is near stays near: neighbours found by quantised vectors and by common prefixes, and reconstruction.

The hit rate of neighbours by quantised vectors is FORGE's (arXiv:2509.20904), whose embedding hit rate goes with the
quality of what is generated. Departures: neighbours by likeness of text beside those by behaviour, and prefixes, which
are what a generator sees, beside vectors. Each number stands beside that of the vectors before quantisation, the most
that can be hoped for, and that of chance. Items that are equally near share the last of the k places, in expectation:
prefixes have many such ties, and items that collide have equal reconstructions.

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
WINDOW = 5  # items on either side that count as behaviour neighbours, as in the collaborative view
BATCH = 1024  # items among which a reconstruction is told apart, as SimCIT does
TEXT = "text"  # the view whose neighbours are likeness of text
TIE = 1e-5  # room for rounding, which may differ between equal vectors with the BLAS


def neighbour_report(
    catalog: Catalog, views: ItemViews | None, codes_ML: np.ndarray, sample: Sample, seed: int
) -> JsonObject:
    """Share of the neighbours of an item that are among its k nearest.

    Args:
        catalog: Its training sequences say which items are behaviour neighbours.
        views: View 'text' says which are text neighbours; there are none without it.
        codes_ML: (M, L) codes of the sample.
        sample: Items that are looked at.
        seed: Decides which of equally frequent behaviour neighbours are the k.

    Returns:
        k, and for `behaviour` and `text`: queries that have such neighbours, and the hit rate by `vectors`,
        `quantised` vectors, `prefix` and `random`; None for what there is not.
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
    found = {"behaviour": behaviour_neighbours(catalog, sample, seed)}
    if views is not None and TEXT in views:
        view = views[TEXT]
        vectors, missing = torch.from_numpy(view.vectors[sample.rows]), torch.from_numpy(view.missing[sample.rows])
        found["text"] = nearest_items(cosines(vectors), sample.queries, len(sample.rows), k, missing)
    for kind, neighbours_Qk in found.items():
        queries = int((neighbours_Qk >= 0).any(dim=1).sum())
        if queries:
            rates = {
                name: None if of is None else hit_rate(of, sample.queries, neighbours_Qk, k)
                for name, of in similarity.items()
            }
            report[kind] = {"queries": queries, **rates, "random": k / (len(sample.rows) - 1)}
    return report


def reconstruction_report(sample: Sample) -> JsonObject | None:
    """How much of the vectors is left in what the codes stand for.

    Returns:
        cosine: of a vector and its reconstruction, mean. knn_overlap: share of the k nearest by vectors among the k
        nearest by reconstructions; knn_overlap_random: by chance. separability: share of the reconstructions whose
        nearest vector among `batch` items is their own; 1 / batch by chance. None as a whole without reconstructions,
        and for what a single item cannot say.

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
    found = [separability(sample.vectors[positions], sample.reconstruction[positions]) for positions in whole]
    return {**report, "separability": float(np.mean(found))}


def hit_rate(similarity: Similarity, queries: np.ndarray, neighbours_Qk: Tensor, k: int) -> float:
    """Share of a query's neighbours among its k most similar items, itself left out; mean over queries that have any.

    Args:
        similarity: Positions (B,) -> (B, M).
        queries: (Q,) positions in the sample.
        neighbours_Qk: (Q, any) positions of neighbours, -1 where there are no more.
        k: At most M - 1.

    Returns:
        In [0, 1]; items that tie for the last places share them, so that it is the expectation over random order.
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
    """Items of the sample that most often stand within WINDOW of each query in the training sequences.

    Returns:
        (Q, K) int64 positions in the sample, -1 where an item has fewer neighbours.
    """
    rows, rng = sample.rows, np.random.default_rng(seed)
    counts = cooccurrence(catalog.train, catalog.num_items, WINDOW)[rows[sample.queries]][:, rows]
    counts.data = counts.data + rng.random(counts.nnz)  # counts are whole numbers: this decides among equal ones
    neighbours_Qk = np.full((len(sample.queries), K), -1)
    for query, (start, end) in enumerate(zip(counts.indptr, counts.indptr[1:], strict=False)):
        most = np.argsort(-counts.data[start:end])[:K]
        neighbours_Qk[query, : len(most)] = counts.indices[start:end][most]
    return torch.from_numpy(neighbours_Qk)


def nearest_items(
    similarity: Similarity, queries: np.ndarray, num_items: int, k: int, missing: Tensor | None = None
) -> Tensor:
    """The k most similar items of each query, itself left out.

    Returns:
        (Q, k) int64 positions; -1 for a query that is missing, and in place of items that are.
    """
    found = []
    for block in blocks(queries, num_items):
        similar_BM = _of_others(similarity, block)
        if missing is not None:
            similar_BM[:, missing] = -torch.inf
            similar_BM[missing[block]] = -torch.inf
        values, positions = similar_BM.topk(k, dim=1)
        found.append(positions.masked_fill(values == -torch.inf, -1))
    return torch.cat(found)


def separability(vectors_BD: Tensor, reconstruction_BD: Tensor) -> float:
    """Share of the reconstructions whose most similar vector is their own; tied vectors share it."""
    unit_BD = torch.nn.functional.normalize(vectors_BD, dim=1)
    similar_BB = torch.nn.functional.normalize(reconstruction_BD, dim=1) @ unit_BD.T
    nearest = similar_BB >= similar_BB.amax(dim=1, keepdim=True) - TIE
    return float((nearest.diagonal() / nearest.sum(dim=1)).mean())


def _of_others(similarity: Similarity, positions: np.ndarray) -> Tensor:
    """(B, M) similarities, -inf to itself."""
    similar_BM = similarity(positions)
    similar_BM[torch.arange(len(positions)), torch.from_numpy(positions)] = -torch.inf
    return similar_BM
