"""Popularity beside distances: popular items are brought nearer, as far as the valid examples want it.

    d' = normalised d / (1 + normalised popularity) ** power,

where both are scaled to 0 … 1, distances in each row and popularity over the catalogue. So the nearest item, at 0,
stays the first whatever the power. The power is chosen on valid examples; the test split never takes part.

Shapes: B histories, N items.

Source: BIGRec (arXiv:2308.08434) and its code, which takes NDCG for recall where it chooses the power of recall. Here
NDCG chooses one power for all metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POWERS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def inject(distances_BN: Tensor, popularity_N: Tensor | None, power: float) -> Tensor:
    """Bring popular items nearer.

    Args:
        distances_BN: (B, N) distances from 0 on.
        popularity_N: (N,) numbers of interactions; None if they are not known.
        power: How much popularity counts; 0 leaves the order as it is.

    Returns:
        (B, N) float32, from 0 to 1.
    """
    nearest_B1, farthest_B1 = distances_BN.aminmax(dim=1, keepdim=True)
    scaled_BN = (distances_BN - nearest_B1) / (farthest_B1 - nearest_B1).clamp(min=1e-12)
    if popularity_N is None or power == 0:
        return scaled_BN
    least, most = popularity_N.aminmax()
    return scaled_BN * (1 + (popularity_N - least) / (most - least).clamp(min=1e-12)) ** -power


def choose_power(distances_BN: Tensor, popularity_N: Tensor, targets_B: Tensor, cutoff: int = 10) -> float:
    """Choose the power by NDCG of valid examples; the smallest of those that are equally good.

    Args:
        distances_BN: (B, N) distances of all items from what the LLM wrote for each history.
        popularity_N: (N,) numbers of interactions.
        targets_B: (B,) item rows that came next.
        cutoff: Number of items that NDCG is of.
    """
    found: Sequence[float] = [_ndcg(inject(distances_BN, popularity_N, power), targets_B, cutoff) for power in POWERS]
    return POWERS[found.index(max(found))]


def _ndcg(scores_BN: Tensor, targets_B: Tensor, cutoff: int) -> float:
    own_B1 = scores_BN.gather(1, targets_B.unsqueeze(1))
    rank_B = (scores_BN < own_B1).sum(dim=1)
    gains_B = 1 / torch.log2(rank_B + 2.0)
    return float(gains_B.masked_fill(rank_B >= cutoff, 0).mean())
