"""Views of places: a graph of near places and consecutive visits, and coordinates as sinusoids.

View `spatial`. Nodes are the items. An edge joins an item to its k nearest neighbours on the globe, with weight
exp(-distance / sigma) where sigma is the median of these distances. An edge also joins items that are next to each
other in a training sequence, with weight log(1 + count). If both join the same two items, the weights add up. The
positive pointwise mutual information of the edges is factorised by a truncated SVD into U sqrt(S). This is NetMF (Qiu
et al., arXiv:1710.02971) with a window of 1, the closed form of LINE. The vectors are then smoothed over 3 steps of the
graph, as in LightGCN. ProNE (Zhang et al., IJCAI 2019) factorises first and smooths afterwards too, with a spectral
filter. Nothing is trained, and time and memory grow with the number of edges.

A longer window, as in DeepWalk and node2vec, costs more and was no better: for 100,000 simulated items the matrix grows
from 2.5 million entries to 585 million with a window of 2. Items held out of training (`hold_out`, seeds 0 to 2) were
ranked by cosine to the mean of the 5 items before them; mean rank as a share of all items:

                                          this     window 1, not smoothed    window 2, not smoothed
    foursquare-nyc, visits alone (483)    .200     .252                      .233
    simulated, 500 places (600)           .152     .178                      .177

Departure: distances are cut at `FARTHEST` sigma. Places far from everything would otherwise have weights near zero,
which the logarithm turns into the largest entries of the matrix.

View `geographic`. sin and cos of latitude and longitude at 1, 2, 4, … waves per turn of the globe, all with the same
weight (the scales of Space2Vec, arXiv:2003.00824, without its learned part). Whole waves leave no seam at the
antimeridian. A degree of longitude counts the same at every latitude, though it is shorter far from the equator.

Only `catalog.train` is read, so held-out items cannot influence the vectors that predict them.

Shapes: N items, M items with coordinates or of the graph, k neighbours, F frequencies, D dimension of the vectors.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

from llmrec.data.catalog import Catalog
from llmrec.data.columns import LAT, LON
from llmrec.runtime.console import say
from llmrec.views import View, describe, scatter
from llmrec.views.collaborative import cooccurrence, positive_pmi

NEIGHBOURS = 10  # nearest places that an item is joined to
FREQUENCIES = 16  # 2^15 waves per turn of the globe: the shortest is 1.2 km
EARTH_RADIUS_KM = 6371.0088  # mean
FARTHEST = 5.0  # sigma
STEPS = 3  # layers of LightGCN


def spatial_view(catalog: Catalog, dim: int, neighbours: int, seed: int) -> View:
    """Make vectors from the graph of near places and consecutive visits; items without an edge are missing.

    Args:
        catalog: Catalogue whose coordinates, if it has any, and training examples are read.
        dim: Dimension of the vectors; smaller if the graph has fewer items.
        neighbours: k, number of nearest places that an item is joined to; fewer if there are fewer places.
        seed: Seed of the truncated SVD.

    Raises:
        ValueError: If coordinates are impossible, or no two items are joined.
    """
    places = coordinates(catalog)
    graph = near(places, neighbours) + visits(catalog)
    nodes = np.flatnonzero(np.diff(graph.indptr))
    if not len(nodes):
        raise ValueError(
            f"'{catalog.source}' has {known(places).sum()} items with {LAT} and {LON}, and no two items follow each "
            f"other in its {len(catalog.train)} training sequences; 'spatial' needs two of either. Add {LAT} and "
            f"{LON} to the items and run `llmrec prepare` again, or leave 'spatial' out of `views`."
        )
    rank = min(dim, len(nodes))
    if rank < dim:
        say(f"{len(nodes)} items of the graph allow {rank} spatial dimensions, not {dim}.")
    vectors = embed(graph[nodes][:, nodes], rank, seed)
    facts = describe(
        "spatial", catalog, encoder="ppmi-svd-smoothed", neighbours=neighbours, farthest=FARTHEST, steps=STEPS,
        dim=rank, seed=seed,
    )  # fmt: skip
    return scatter(vectors, nodes, catalog.num_items, facts)


def geographic_view(catalog: Catalog, frequencies: int) -> View:
    """Encode latitude and longitude as unit vectors of sinusoids; items without coordinates are missing.

    Args:
        catalog: Catalogue whose coordinates are read.
        frequencies: F. The highest frequency is 2^(F - 1) waves per turn of the globe, 1.2 km for 16. The dimension is
            4 F.

    Raises:
        ValueError: If coordinates are impossible, or no item has any.
    """
    places = coordinates(catalog)
    rows = np.flatnonzero(known(places))
    if not len(rows):
        raise ValueError(
            f"No item of '{catalog.source}' has {LAT} and {LON}; add them to the items and run `llmrec prepare` again, "
            "or leave 'geographic' out of `views`."
        )
    angles = np.radians(places[rows])[:, :, None] * 2.0 ** np.arange(frequencies)  # (M, 2, F)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).reshape(len(rows), -1)
    facts = describe("geographic", catalog, encoder="sinusoid", frequencies=frequencies)
    return scatter(waves / np.sqrt(2 * frequencies), rows, catalog.num_items, facts)


def coordinates(catalog: Catalog) -> np.ndarray:
    """Latitude and longitude of every item in degrees.

    Returns:
        (N, 2) float64, NaN in both columns if either is unknown.

    Raises:
        ValueError: If the catalogue has only one of the two columns, or a coordinate that is impossible.
    """
    there = [name for name in (LAT, LON) if name in catalog.items.column_names]
    if len(there) == 1:
        raise ValueError(f"'{catalog.source}' has the column {there[0]} alone; give items both {LAT} and {LON}.")
    places = np.full((catalog.num_items, 2), np.nan)
    for column, name in enumerate(there):
        places[:, column] = catalog.items[name].cast(pa.float64()).to_numpy()
    places[~known(places)] = np.nan
    bad = np.flatnonzero((np.abs(places) > (90, 180)).any(axis=1))
    if len(bad):
        swapped = not (np.abs(places[:, ::-1]) > (90, 180)).any()
        remedy = f"They look swapped: exchange {LAT} and {LON}" if swapped else "Correct them, or leave both empty"
        raise ValueError(
            f"'{catalog.source}' has {len(bad)} items outside the globe, first item_id '{catalog.item_ids[bad[0]]}' "
            f"with {LAT} {places[bad[0], 0]:g} and {LON} {places[bad[0], 1]:g}; {LAT} lies between -90 and 90, {LON} "
            f"between -180 and 180. {remedy}, and run `llmrec prepare` again."
        )
    return places


def known(places: np.ndarray) -> np.ndarray:
    """(N,) bool, True for items of (N, 2) `places` that have both coordinates."""
    return ~np.isnan(places).any(axis=1)


def near(places: np.ndarray, neighbours: int) -> sparse.csr_array:
    """Join each place to its k nearest places.

    Args:
        places: (N, 2) latitude and longitude in degrees, NaN if unknown.
        neighbours: k.

    Returns:
        (N, N) float64, symmetric, zero diagonal, weights in [exp(-FARTHEST), 1].
    """
    rows = np.flatnonzero(known(places))
    shape = (len(places), len(places))
    if len(rows) < 2:
        return sparse.csr_array(shape)
    found, km = nearest(places[rows], neighbours)
    weights = np.exp(-np.minimum(km / _sigma(km), FARTHEST))
    left = np.repeat(rows, found.shape[1])
    edges = sparse.coo_array((weights.ravel(), (left, rows[found.ravel()])), shape=shape).tocsr()
    return edges.maximum(edges.T)


def nearest(places: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest other places by great-circle distance, nearest first.

    Args:
        places: (M, 2) latitude and longitude in degrees, M at least 2.
        neighbours: k; all other places if there are fewer.

    Returns:
        (M, k) int64 positions in `places` and (M, k) float64 kilometres.
    """
    tree = NearestNeighbors(n_neighbors=min(neighbours, len(places) - 1), algorithm="ball_tree", metric="haversine")
    radians, found = tree.fit(np.radians(places)).kneighbors()  # without an argument no place is its own neighbour
    return found, radians * EARTH_RADIUS_KM


def _sigma(km: np.ndarray) -> float:
    """Median distance; if most distances are 0, as in a mall, the median of the others."""
    apart = km[km > 0]
    return float(np.median(km) or (np.median(apart) if len(apart) else 1.0))


def visits(catalog: Catalog) -> sparse.csr_array:
    """(N, N) float64 symmetric: log(1 + count) of two items that follow each other in training, in either order."""
    return cooccurrence(catalog.train, catalog.num_items, window=1).log1p()


def embed(graph: sparse.csr_array, dim: int, seed: int) -> np.ndarray:
    """Embed the nodes of a graph: positive PMI of its edges, truncated SVD, smoothing.

    Args:
        graph: (M, M) symmetric weights; every node has an edge.
        dim: D, at most M.
        seed: Seed of the truncated SVD.

    Returns:
        (M, D) float64.
    """
    svd = TruncatedSVD(dim, random_state=seed)
    scaled = svd.fit_transform(positive_pmi(graph))  # (M, D), U S
    return smooth(scaled / np.sqrt(np.maximum(svd.singular_values_, np.finfo(np.float32).tiny)), graph)


def smooth(vectors: np.ndarray, graph: sparse.csr_array) -> np.ndarray:
    """Average vectors with those that 1 to STEPS steps over the graph bring.

    Args:
        vectors: (M, D) vectors of the nodes.
        graph: (M, M) symmetric weights; every node has an edge.

    Returns:
        (M, D) vectors.

    Source: LightGCN (arXiv:2002.02126, section 3.1); a weight is divided by the root of the degrees of both ends.
    """
    scale = sparse.diags_array(graph.sum(axis=1) ** -0.5)
    step, reached, total = scale @ graph @ scale, vectors, vectors
    for _ in range(STEPS):
        reached = step @ reached
        total = total + reached
    return total / (STEPS + 1)
