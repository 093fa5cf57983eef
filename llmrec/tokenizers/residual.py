"""Mathematics that residual item tokenizers share: nearest code, k-means, Sinkhorn assignment.

Everything here gives the same answer twice on one machine. Random draws come from a CPU generator, sums over the items
of a code are matrix products (index_add_ on a GPU adds in the order of the day), and ties go to the lower index.

Shapes: N points, K codes, D dimension, G groups, B points of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK_BYTES = 256 * 2**20  # largest (rows, K) block of distances held at once


def chunks_of(points_ND: Tensor, num_codes: int) -> tuple[Tensor, ...]:
    """Split points so that their distances to all codes fit into CHUNK_BYTES."""
    return points_ND.split(max(1, CHUNK_BYTES // (4 * num_codes)))


def squared_distances(points_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Squared Euclidean distance of each point to each code.

    Returns:
        (N, K), in the type of the points, never negative.
    """
    norms = points_ND.square().sum(1, keepdim=True) + codebook_KD.square().sum(1)
    return torch.addmm(norms, points_ND, codebook_KD.T, alpha=-2).clamp_(min=0)


def nearest(points_ND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code of each point.

    Returns:
        (N,) int64 codes and (N,) squared distances to them, on the device of the points.
    """
    parts = [squared_distances(part, codebook_KD).min(dim=1) for part in chunks_of(points_ND, len(codebook_KD))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def kmeans(points_ND: Tensor, num_codes: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's k-means from a k-means++ start; a code that loses all its points restarts at the farthest point.

    Args:
        points_ND: (N, D) float32 on any device, at least `num_codes` of them.
        iterations: Most updates; stops earlier once no point changes its code.
        generator: CPU generator, so that a start does not depend on the device.

    Returns:
        (num_codes, D) float32 on the device of the points.

    Source: Lloyd 1982; start: Arthur and Vassilvitskii, SODA 2007, one candidate per draw.
    """
    codebook_KD = kmeans_plus_plus(points_ND, num_codes, generator)
    previous_N = None
    for _ in range(iterations):
        codes_N, distances_N = nearest(points_ND, codebook_KD)
        if previous_N is not None and torch.equal(codes_N, previous_N):
            break
        codebook_KD = _means(points_ND, codes_N, codebook_KD)
        _restart_empty(codebook_KD, points_ND, codes_N, distances_N)
        previous_N = codes_N
    return codebook_KD


def kmeans_plus_plus(points_ND: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Draw starting codes among the points, each with probability proportional to its squared distance so far."""
    chosen = [int(torch.randint(len(points_ND), (1,), generator=generator))]
    distances_N = torch.full((len(points_ND),), torch.inf, dtype=torch.float64)
    for _ in range(num_codes - 1):
        latest_1D = points_ND[chosen[-1] :][:1]
        # By differences: the expanded square would leave a chosen point at a rounding error, not at zero.
        step_N = torch.cdist(points_ND, latest_1D, compute_mode="donot_use_mm_for_euclid_dist")[:, 0].square()
        distances_N = torch.minimum(distances_N, step_N.cpu().double())
        mass_N = distances_N.cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * mass_N[-1]
        chosen.append(int(torch.searchsorted(mass_N, draw, right=True).clamp_(max=len(points_ND) - 1)))
    return points_ND[chosen].clone()


def _means(points_ND: Tensor, codes_N: Tensor, codebook_KD: Tensor) -> Tensor:
    """Mean of the points of each code; a code without points stays where it is."""
    num_codes = len(codebook_KD)
    sums_KD, step = torch.zeros_like(codebook_KD), 0
    for part in chunks_of(points_ND, num_codes):
        codes = codes_N[step : step + len(part), None]
        sums_KD += part.new_zeros(len(part), num_codes).scatter_(1, codes, 1).T @ part
        step += len(part)
    counts_K1 = torch.bincount(codes_N, minlength=num_codes)[:, None]
    return torch.where(counts_K1 > 0, sums_KD / counts_K1.clamp(min=1), codebook_KD)


def _restart_empty(codebook_KD: Tensor, points_ND: Tensor, codes_N: Tensor, distances_N: Tensor) -> None:
    """Move codes without points to the points that are farthest from their own code, in place."""
    empty = (torch.bincount(codes_N, minlength=len(codebook_KD)) == 0).nonzero().flatten()
    if len(empty) == 0:
        return
    order_N = distances_N.cpu().argsort(descending=True, stable=True)
    farthest = order_N[: len(empty)].to(empty.device)
    farthest = farthest[distances_N[farthest] > 0]  # with fewer distinct points than codes, the rest stays unused
    codebook_KD[empty[: len(farthest)]] = points_ND[farthest]


def sinkhorn(cost_GBK: Tensor, epsilon: float = 0.003, iterations: int = 50) -> Tensor:
    """Share out the points of each group among the codes so that the codes are used evenly and the cost is low.

    Args:
        cost_GBK: (G, B, K) distances; every group is a problem of its own.
        epsilon: Entropic regularisation; .003 is LC-Rec's last level.
        iterations: Rounds of "each point has mass 1/B, then each code has mass 1/K". LC-Rec runs exactly 50, which
            does not converge at this epsilon; another number gives another assignment.

    Returns:
        (G, B, K) float64, logarithm of the mass of each point on each code; a point's code is its argmax.

    Source: LC-Rec (arXiv:2311.09049), official code: costs centred and scaled by the whole matrix. Departure: in the
        logarithmic domain, where exp cannot overflow.
    """
    cost = cost_GBK.double()
    high, low = cost.amax((1, 2), keepdim=True), cost.amin((1, 2), keepdim=True)
    middle = (high + low) / 2
    log_q = -(cost - middle) / (high - middle + 1e-5) / epsilon
    num_points, num_codes = cost.shape[1:]
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(2, keepdim=True) - math.log(num_points)
        log_q = log_q - log_q.logsumexp(1, keepdim=True) - math.log(num_codes)
    return log_q
