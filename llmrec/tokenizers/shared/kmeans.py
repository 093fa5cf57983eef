"""Nearest code, k-means and Sinkhorn assignment.

Everything here gives the same answer twice on one machine. Random draws come from a CPU generator, sums over the items
of a code are deterministic (no atomic adds on a GPU, see _sums), and ties go to the lower index.

Shapes: N points, K codes, D dimension, G groups, B points of a group, P pieces of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Largest (rows, K) block of distances held at once. 10^6 x 768 on an H200, three levels of 20 iterations: .525 s, with
# 32 MiB, which stay in the L2 cache but are more launches, .541 s.
CHUNK_BYTES = 128 * 2**20
START_POINTS_PER_CODE = 256  # k-means++ looks at every point once per code, so at no more points than this
FEW = 0.25  # share of points whose changes are summed instead of everything: they are summed twice, and gathered
ROUNDING = 1e-6  # of an expanded square, relative to the squares in it
DRAW_STEPS = 2**36  # resolution of a k-means++ draw: the sum over 2^26 points still fits into int64


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
    codes_N, offsets_N = _nearest(points_ND, codebook_KD)
    norms_N = torch.linalg.vector_norm(points_ND, dim=1).square()
    return codes_N, (norms_N + offsets_N).clamp_(min=0)


def _nearest(points_ND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes, and the squared distances less the points' own norms, which do not matter to the choice.

    One product with a bias makes a block and one reduction consumes it, so that a block never leaves the cache.
    """
    norms_K, factor_DK = codebook_KD.square().sum(1), (-2 * codebook_KD).T
    parts = [torch.addmm(norms_K, part, factor_DK).min(dim=1) for part in chunks_of(points_ND, len(codebook_KD))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def kmeans(points_ND: Tensor, num_codes: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's k-means over all points, from a k-means++ start.

    Args:
        points_ND: (N, D) float32 on any device, at least `num_codes` of them.
        iterations: Most updates; stops earlier once no point changes its code.
        generator: CPU generator, so that a start does not depend on the device.

    Returns:
        (num_codes, D) float32 on the device of the points.

    Source: Lloyd 1982; start: Arthur and Vassilvitskii, SODA 2007, see `kmeans_plus_plus`.
    """
    return lloyd(points_ND, kmeans_plus_plus(points_ND, num_codes, generator), iterations)


def lloyd(points_ND: Tensor, codebook_KD: Tensor, iterations: int) -> Tensor:
    """Move codes to the means of their points; a code that loses all its points restarts at the farthest point.

    On a GPU the products are in TF32: a point halfway between two codes may go to either, which costs next to nothing.
    The means that are returned are summed anew in float32.

    Args:
        points_ND: (N, D) float32 on any device.
        codebook_KD: (K, D) float32, starting codes.
        iterations: Most updates, at least one; stops earlier once no point changes its code. It is asked every time:
            an iteration over 10^6 points takes milliseconds, much longer than the wait for an answer.

    Returns:
        (K, D) float32 on the device of the points.
    """
    previous_N: Tensor | None = None
    sums_KD: Tensor | None = None
    with tf32_products():
        for _ in range(iterations):
            codes_N = _nearest(points_ND, codebook_KD)[0]
            if previous_N is None or sums_KD is None:
                sums_KD = _sums(points_ND, codes_N, len(codebook_KD))
            else:
                moved = (codes_N != previous_N).nonzero().flatten()
                if not len(moved):
                    break
                sums_KD = _sums_after(points_ND, moved, codes_N, previous_N, sums_KD)
            codebook_KD, counts_K = _means(sums_KD, codes_N, codebook_KD)
            if counts_K.min() == 0:
                distances_N = _distances_to(points_ND, codes_N, codebook_KD)
                _restart_empty(codebook_KD, points_ND, codes_N, distances_N)
            previous_N = codes_N
    return code_means(points_ND, codes_N, codebook_KD)[0]


def _sums_after(points_ND: Tensor, moved: Tensor, codes_N: Tensor, previous_N: Tensor, sums_KD: Tensor) -> Tensor:
    """Sum of the points of each code, from the sums of before where few points have changed their code.

    After the first iterations a few per cent of the points do, and theirs alone are then added and taken away.
    """
    num_codes = len(sums_KD)
    if len(moved) >= len(codes_N) * FEW:
        return _sums(points_ND, codes_N, num_codes)
    part = points_ND[moved]
    return sums_KD + _sums(part, codes_N[moved], num_codes) - _sums(part, previous_N[moved], num_codes)


def kmeans_plus_plus(points_ND: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Draw starting codes among the points, each the best of several candidates.

    A candidate is drawn with probability proportional to its squared distance to the codes so far; of 2 + ln K
    candidates that one is taken which leaves the smallest sum of squared distances.

    Above 256 points per code they are drawn from a random sample of that size: every code takes a pass over the
    points, and 255 passes read six times as much as 20 iterations of k-means do.

    Source: Arthur and Vassilvitskii, SODA 2007, whose evaluation is greedy; number of candidates: scikit-learn.
    """
    if len(points_ND) > START_POINTS_PER_CODE * num_codes:
        sample = torch.randint(len(points_ND), (START_POINTS_PER_CODE * num_codes,), generator=generator)
        points_ND = points_ND[sample.to(points_ND.device)]
    first = torch.randint(len(points_ND), (1,), generator=generator).to(points_ND.device)
    shape = num_codes - 1, 2 + int(math.log(num_codes))
    draws = torch.rand(shape, generator=generator, dtype=torch.float64).to(points_ND.device)
    norms_N = torch.linalg.vector_norm(points_ND, dim=1).square()
    distances_N = _distances_of(points_ND, first, norms_N)[:, 0]
    scale = DRAW_STEPS / distances_N.max().double().clamp(min=1e-30)  # distances only fall from here
    chosen = [first]
    for uniform_C in draws:
        candidates_C = _draw(distances_N * scale, uniform_C)
        left_NC = torch.minimum(distances_N[:, None], _distances_of(points_ND, candidates_C, norms_N))
        best = left_NC.sum(0, dtype=torch.float64).argmin(keepdim=True)
        chosen.append(candidates_C[best])
        distances_N = left_NC.index_select(1, best)[:, 0]
    return points_ND[torch.cat(chosen)]


def _distances_of(points_ND: Tensor, rows_C: Tensor, norms_N: Tensor) -> Tensor:
    """(N, C) squared distances of all points to some of them.

    One product reads the points once; differences take four times as long. What is no more than its rounding error
    counts as zero, so that a chosen point, and every point equal to it, is not drawn again.
    """
    both_NC = norms_N[:, None] + norms_N[rows_C]
    distances_NC = torch.addmm(both_NC, points_ND, points_ND[rows_C].T, alpha=-2)
    return distances_NC.where(distances_NC > ROUNDING * both_NC, 0)


def _draw(weights_N: Tensor, uniform_C: Tensor) -> Tensor:
    """Draw rows with chances proportional to weights, in integers: a GPU's cumsum of floats is not repeatable.

    Args:
        weights_N: (N,) at most DRAW_STEPS each; what is below 1 counts as 0.
        uniform_C: (C,) float64 in [0, 1).

    Returns:
        (C,) int64, on the device of the weights and without waiting for it.
    """
    mass_N = weights_N.long().cumsum(0)
    drawn_C = torch.searchsorted(mass_N, (uniform_C * mass_N[-1]).long(), right=True)
    return drawn_C.clamp_(max=len(weights_N) - 1)  # no mass at all: fewer distinct points than codes


def code_means(points_ND: Tensor, codes_N: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the points of each code; a code without points stays where it is in `codebook_KD`.

    Returns:
        (K, D) means and (K,) int64 numbers of points.
    """
    return _means(_sums(points_ND, codes_N, len(codebook_KD)), codes_N, codebook_KD)


def _means(sums_KD: Tensor, codes_N: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    counts_K = torch.bincount(codes_N, minlength=len(codebook_KD))
    means_KD = sums_KD / counts_K.clamp(min=1)[:, None]
    return torch.where(counts_K[:, None] > 0, means_KD, codebook_KD), counts_K


def _sums(points_ND: Tensor, codes_N: Tensor, num_codes: int) -> Tensor:
    """Sum of the points of each code, deterministic on every device.

    On the CPU index_add_ takes the rows in order, six times as fast as a product with one-hot codes (40,000 x 768, 256
    codes, one core: 19 and 117 ms). On a GPU the order of its additions would vary, so there it is the product; its few
    output tiles (12 for 256 x 768) would leave most of the GPU idle, so the rows are summed in pieces, then the pieces.

    Returns:
        (K, D) in the type of the points.
    """
    dim = points_ND.shape[1]
    if not points_ND.is_cuda:
        return points_ND.new_zeros(num_codes, dim).index_add_(0, codes_N, points_ND)
    return _sums_by_product(points_ND, codes_N, num_codes)


def _sums_by_product(points_ND: Tensor, codes_N: Tensor, num_codes: int) -> Tensor:
    dim, pieces = points_ND.shape[1], max(1, 4096 // num_codes)
    sums_PKD, rest_KD = points_ND.new_zeros(pieces, num_codes, dim), points_ND.new_zeros(num_codes, dim)
    parts = chunks_of(points_ND, num_codes)
    for part, codes in zip(parts, codes_N.split(len(parts[0])), strict=True):
        one_hot, rows = part.new_zeros(len(part), num_codes).scatter_(1, codes[:, None], 1), len(part) // pieces
        whole = rows * pieces
        sums_PKD.baddbmm_(
            one_hot[:whole].view(pieces, rows, num_codes).transpose(1, 2), part[:whole].view(pieces, rows, dim)
        )
        rest_KD += one_hot[whole:].T @ part[whole:]
    return sums_PKD.sum(0) + rest_KD


def _distances_to(points_ND: Tensor, codes_N: Tensor, codebook_KD: Tensor) -> Tensor:
    """(N,) squared distance of each point to its code, by differences: a point on its code is at zero."""
    parts = chunks_of(points_ND, points_ND.shape[1])
    return torch.cat(
        [
            (part - codebook_KD[codes]).square().sum(1)
            for part, codes in zip(parts, codes_N.split(len(parts[0])), strict=True)
        ]
    )


def _restart_empty(codebook_KD: Tensor, points_ND: Tensor, codes_N: Tensor, distances_N: Tensor) -> None:
    """Move codes without points to the points that are farthest from their own code, in place."""
    empty = (torch.bincount(codes_N, minlength=len(codebook_KD)) == 0).nonzero().flatten()
    if len(empty) == 0:
        return
    order_N = distances_N.cpu().argsort(descending=True, stable=True)
    farthest = order_N[: len(empty)].to(empty.device)
    farthest = farthest[distances_N[farthest] > 0]  # with fewer distinct points than codes, the rest stays unused
    codebook_KD[empty[: len(farthest)]] = points_ND[farthest]


@contextmanager
def tf32_products() -> Iterator[None]:
    """Round the factors of float32 products on a GPU to TF32 within the block; and restore the setting afterwards."""
    matmul = torch.backends.cuda.matmul
    # Since torch 2.9 the first name; reading the second after someone has set the first raises.
    name, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def sinkhorn(cost_GBK: Tensor, epsilon: float = 0.003, iterations: int = 50) -> Tensor:
    """Assign the points of each group so that the codes are used evenly and the cost is low.

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
