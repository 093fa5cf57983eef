"""Nearest code and k-means.

Everything here gives the same answer twice on one machine. Random draws come from a CPU generator, sums over the items
of a code are deterministic (no atomic adds on a GPU, see _sums), and ties go to the lower index.

Under `accelerate launch` every process calls k-means, and each finds the nearest codes of a share of the points and
sums them; the sums are added up over the processes once in an iteration. All get the same codes, which are those of one
process up to the rounding of the sums: on a CPU these are in float64, and the codes were equal in every run.

Shapes: N points, K codes, D dimension, P pieces of a sum, S points that starting codes are drawn among.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmrec.runtime import processes
from llmrec.runtime.device import tf32_products

# Largest (rows, K) block of distances held at once. 10^6 x 768 on an H200, three levels of 20 iterations: .525 s, with
# 32 MiB, which stay in the L2 cache but are more launches, .541 s.
CHUNK_BYTES = 128 * 2**20
START_POINTS_PER_CODE = 256  # k-means++ looks at every point once per code, so at no more points than this
LEAST_SHARED = 2**32  # products of an iteration, N * K * D; below, adding up over processes takes as long on a GPU
SUM_ROWS = 8192  # points that are turned into float64 at once
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


def kmeans(
    points_ND: Tensor, num_codes: int, iterations: int, generator: torch.Generator, is_share: bool = False
) -> Tensor:
    """Lloyd's k-means over all points, from a k-means++ start.

    Args:
        points_ND: (N, D) float32 on any device, at least `num_codes` of them.
        iterations: Most updates; stops earlier once no point changes its code.
        generator: CPU generator, so that a start does not depend on the device.
        is_share: Whether `points_ND` are the rows `processes.share` of all points; else every process has all of them.

    Returns:
        (num_codes, D) float32 on the device of the points.

    Source: Lloyd 1982; start: Arthur and Vassilvitskii, SODA 2007, see `kmeans_plus_plus`.
    """
    return lloyd(points_ND, kmeans_plus_plus(points_ND, num_codes, generator, is_share), iterations, is_share)


def lloyd(points_ND: Tensor, codebook_KD: Tensor, iterations: int, is_share: bool = False) -> Tensor:
    """Move codes to the means of their points; a code that loses all its points restarts at the farthest point.

    On a GPU the products are in TF32: a point halfway between two codes may go to either, which costs next to nothing.
    The means that are returned are summed anew in float32.

    Args:
        points_ND: (N, D) float32 on any device.
        codebook_KD: (K, D) float32, starting codes.
        iterations: Most updates, at least one; stops earlier once no point changes its code.
        is_share: As for `kmeans`.

    Returns:
        (K, D) float32 on the device of the points.
    """
    if not is_share and processes.count() > 1 and points_ND.numel() * len(codebook_KD) >= LEAST_SHARED:
        points_ND, is_share = points_ND[processes.share(len(points_ND))], True

    def total(part: Tensor) -> Tensor:
        return processes.total(part) if is_share else part

    previous_N: Tensor | None = None
    sums_KD: Tensor | None = None
    with tf32_products():
        for _ in range(iterations):
            codes_N = _nearest(points_ND, codebook_KD)[0]
            if previous_N is None or sums_KD is None:
                sums_KD = _sums(points_ND, codes_N, len(codebook_KD))
            else:
                moved = (codes_N != previous_N).nonzero().flatten()
                if not total(torch.tensor(len(moved))):  # the wait is short beside the iteration
                    break
                sums_KD = _sums_after(points_ND, moved, codes_N, previous_N, sums_KD)
            counts_K = total(_counts(codes_N, codebook_KD))
            codebook_KD = _means(total(sums_KD), counts_K, codebook_KD)
            if counts_K.min() == 0:
                distances_N = _distances_to(points_ND, codes_N, codebook_KD)
                _restart_empty(codebook_KD, counts_K, points_ND, distances_N, is_share)
            previous_N = codes_N
    return _means(total(_sums(points_ND, codes_N, len(codebook_KD))), total(_counts(codes_N, codebook_KD)), codebook_KD)


def _sums_after(points_ND: Tensor, moved: Tensor, codes_N: Tensor, previous_N: Tensor, sums_KD: Tensor) -> Tensor:
    """Sum of the points of each code, from the sums of before where few points have changed their code.

    After the first iterations a few per cent of the points do, and theirs alone are then added and taken away.
    """
    num_codes = len(sums_KD)
    if len(moved) >= len(codes_N) * FEW:
        return _sums(points_ND, codes_N, num_codes)
    part = points_ND[moved]
    return sums_KD + _sums(part, codes_N[moved], num_codes) - _sums(part, previous_N[moved], num_codes)


def kmeans_plus_plus(points_ND: Tensor, num_codes: int, generator: torch.Generator, is_share: bool = False) -> Tensor:
    """Draw starting codes among the points, each the best of several candidates.

    A candidate is drawn with probability proportional to its squared distance to the codes so far; of 2 + ln K
    candidates that one is taken which leaves the smallest sum of squared distances.

    Above 256 points per code they are drawn from a random sample of that size: every code takes a pass over the
    points, and 255 passes read six times as much as 20 iterations of k-means do.

    Source: Arthur and Vassilvitskii, SODA 2007, whose evaluation is greedy; number of candidates: scikit-learn.
    """
    points_ND = _sample(points_ND, num_codes, generator, is_share)
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


def _sample(points_ND: Tensor, num_codes: int, generator: torch.Generator, is_share: bool) -> Tensor:
    """(S, D) points that starting codes are drawn among, the same in every process; `is_share` as for `kmeans`."""
    num_points, most = len(points_ND), START_POINTS_PER_CODE * num_codes
    if is_share:
        num_points = int(processes.total(torch.tensor(num_points)))
    if num_points <= most:
        return processes.joined(points_ND) if is_share else points_ND
    rows_S = torch.randint(num_points, (most,), generator=generator).to(points_ND.device)
    if not is_share:
        return points_ND[rows_S]
    first = processes.share(num_points).start
    is_own_S = (rows_S >= first) & (rows_S < first + len(points_ND))
    sample_SD = points_ND.new_zeros(most, points_ND.shape[1])
    sample_SD[is_own_S] = points_ND[rows_S[is_own_S] - first]
    return processes.total(sample_SD)  # each from the process that has it


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
    counts_K = _counts(codes_N, codebook_KD)
    return _means(_sums(points_ND, codes_N, len(codebook_KD)), counts_K, codebook_KD), counts_K


def _counts(codes_N: Tensor, codebook_KD: Tensor) -> Tensor:
    return torch.bincount(codes_N, minlength=len(codebook_KD))


def _means(sums_KD: Tensor, counts_K: Tensor, codebook_KD: Tensor) -> Tensor:
    means_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).to(codebook_KD.dtype)
    return torch.where(counts_K[:, None] > 0, means_KD, codebook_KD)


def _sums(points_ND: Tensor, codes_N: Tensor, num_codes: int) -> Tensor:
    """Sum of the points of each code, deterministic on every device.

    On the CPU index_add_ takes the rows in order, in float64, so that their division among processes does not show in
    the codes: 28 ms for 40,000 x 768 points of 256 codes on one core, beside 163 ms for the nearest codes. On a GPU the
    order of its additions would vary, so there it is a product with one-hot codes; its few output tiles (12 for 256 x
    768) would leave most of the GPU idle, so the rows are summed in pieces, then the pieces.

    Returns:
        (K, D) float64 on the CPU; in the type of the points on a GPU.
    """
    if points_ND.is_cuda:
        return _sums_by_product(points_ND, codes_N, num_codes)
    sums_KD = torch.zeros(num_codes, points_ND.shape[1], dtype=torch.float64)
    for part, codes in zip(points_ND.split(SUM_ROWS), codes_N.split(SUM_ROWS), strict=True):
        sums_KD.index_add_(0, codes, part.double())
    return sums_KD


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


def _restart_empty(
    codebook_KD: Tensor, counts_K: Tensor, points_ND: Tensor, distances_N: Tensor, is_share: bool = False
) -> None:
    """Move codes without points to the points that are farthest from their own code, in place."""
    empty = (counts_K == 0).nonzero().flatten()
    far_ED, distances_E = _farthest(points_ND, distances_N, len(empty))
    if is_share:
        far_ED, distances_E = _farthest(processes.joined(far_ED), processes.joined(distances_E), len(empty))
    far_ED = far_ED[distances_E > 0]  # with fewer distinct points than codes, the rest stays unused
    codebook_KD[empty[: len(far_ED)]] = far_ED


def _farthest(points_ND: Tensor, distances_N: Tensor, most: int) -> tuple[Tensor, Tensor]:
    rows = distances_N.cpu().argsort(descending=True, stable=True)[:most].to(points_ND.device)
    return points_ND[rows], distances_N[rows]
