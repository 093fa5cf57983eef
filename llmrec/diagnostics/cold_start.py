"""Distance of items without training interactions to the nearest first-level code.

A new item can be recommended only if its codes put it near similar items. Cold items, which have no training
interactions, are compared with the other, warm items: the farther they are from the codes, the less the codes fit them.

Shapes: M items of the sample, B of them, K first-level codes, D dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.diagnostics.sample import Sample, blocks
from llmrec.runtime.manifest import JsonObject

QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
MAX_MEASURED = 1024  # cold and warm items whose distance is measured


def cold_start_report(catalog: Catalog, codes_ML: np.ndarray, sample: Sample, seed: int) -> JsonObject:
    """Compare items without training interactions (cold) with the others (warm).

    Args:
        catalog: Catalogue whose training interactions decide which items are cold.
        codes_ML: (M, L) codes of the sample.
        sample: Sampled items.
        seed: Seed of the draw, if there are more than MAX_MEASURED cold or warm items.

    Returns:
        items: numbers of cold and warm items in the sample. distance: result of `code_distances`, None without vectors.
    """
    cold_M = catalog.training_counts[sample.rows] == 0
    rng, drawn = np.random.default_rng(seed), {}
    for kind, positions in (("cold", np.flatnonzero(cold_M)), ("warm", np.flatnonzero(~cold_M))):
        drawn[kind] = np.sort(rng.permutation(positions)[:MAX_MEASURED])
    vectors_MD = sample.vectors
    return {
        "items": {"cold": int(cold_M.sum()), "warm": int((~cold_M).sum())},
        "distance": None if vectors_MD is None else code_distances(vectors_MD, codes_ML[:, 0], cold_M, drawn),
    }


def code_distances(
    vectors_MD: Tensor, first_M: np.ndarray, cold_M: np.ndarray, drawn: dict[str, np.ndarray]
) -> JsonObject | None:
    """Distances to the nearest first-level code, whose centre is the mean of the warm items with this code.

    A warm item is left out of its own centre, because it would pull the centre towards itself, as no cold item does.

    Args:
        vectors_MD: (M, D) vectors.
        first_M: (M,) first codes.
        cold_M: (M,) bool.
        drawn: Positions of the `cold` and `warm` items to measure.

    Returns:
        For `cold` and `warm`: quantiles of the Euclidean distance. mean_quantile: probability that a warm item is
        nearer than a cold one, 0.5 if they are alike. None without a cold item or without two warm ones.
    """
    if not len(drawn["cold"]) or (~cold_M).sum() < 2:
        return None
    codes, code_M = np.unique(first_M[~cold_M], return_inverse=True)
    counts_K = torch.from_numpy(np.bincount(code_M))
    sums_KD = torch.zeros(len(codes), vectors_MD.shape[1]).index_add_(0, torch.from_numpy(code_M), vectors_MD[~cold_M])
    own_M = np.full(len(first_M), -1)
    own_M[~cold_M] = code_M
    distances = {}
    for kind, positions in drawn.items():
        nearest = []
        for block in blocks(positions, len(codes)):
            distance_BK = torch.cdist(vectors_MD[block], sums_KD / counts_K[:, None])
            if kind == "warm":  # without this item, a centre of n items is n / (n - 1) times as far away
                own, at = torch.from_numpy(own_M[block]), torch.arange(len(block))
                n = counts_K[own].float()
                distance_BK[at, own] = torch.where(n > 1, distance_BK[at, own] * n / (n - 1), torch.inf)
            nearest.append(distance_BK.amin(dim=1))
        distances[kind] = torch.cat(nearest).double().numpy()
    # The distance of the only warm item of the only code is infinite.
    cold, warm = distances["cold"], np.sort(distances["warm"][np.isfinite(distances["warm"])])
    nearer = (np.searchsorted(warm, cold, "left") + np.searchsorted(warm, cold, "right")) / (2 * len(warm))
    quantiles = {
        kind: {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}
        for kind, values in (("cold", cold), ("warm", warm))
    }
    return {**quantiles, "mean_quantile": float(nearer.mean())}
