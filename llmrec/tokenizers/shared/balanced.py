"""Balanced assignment and balanced k-means: every code gets the same number of points, or one more.

By prices: each code has a price, at which each point's cheapest code leaves the codes almost balanced; points that are
still too many for a code move where that costs least. It needs only passes over the costs, on any device. By turns:
OneRec's loop over the codes. Within small groups: LC-Rec's Sinkhorn assignment.

On 20,000 vectors of 300 clusters of uneven size with 256 codes, prices cost 0.6 % more than the exact minimum-cost flow
of OR-Tools at the first level and 0.15 % at the second; OneRec's loop 31 and 14 %.

Shapes: N points, K codes, D dimension, G groups, B points of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmrec.tokenizers.shared.kmeans import chunks_of, code_means, kmeans_plus_plus, squared_distances

# Rounds of price changes and the first temperature: from nothing, and from prices of almost the same costs. Starting
# again at the last temperature overshoots: 20 iterations of k-means over 3,000 points then ended 7 % above those with
# the exact assignment in every iteration, and end level with them like this.
ROUNDS, FIRST = 100, 0.3
ROUNDS_AGAIN, FIRST_AGAIN = 20, 0.1
LAST = 0.003  # temperatures are in units of how much dearer a mean code is than the cheapest
SETTLED = 0.8  # share of the rounds after which the temperature stays
RELAXATION = 1.8  # below 2; 60 rounds of plain Sinkhorn, 1, cost 1.5 % more than the optimum where 1.5 cost 1.0 %


def balanced_assignment(cost_NK: Tensor) -> Tensor:
    """Give every point a code so that each code has floor(N/K) or ceil(N/K) points and the total cost is low.

    Args:
        cost_NK: (N, K) float32, cost of each point on each code; K above N leaves codes unused.

    Returns:
        (N,) int64 codes, on the device of the costs.

    Raises:
        ValueError: If a cost is not finite.
    """
    if not torch.stack(cost_NK.aminmax()).isfinite().all():
        raise ValueError("Some costs are infinite or not numbers; a balanced assignment may have to use any of them.")
    return round_to_balance(cost_NK, balance_prices(cost_NK))


def balance_prices(cost_NK: Tensor, prices_K: Tensor | None = None) -> Tensor:
    """Find the price of each code at which points that choose by cost plus price spread evenly over the codes.

    Args:
        cost_NK: (N, K) float32.
        prices_K: (K,) prices of almost the same costs, to start from; few rounds suffice then.

    Returns:
        (K,) float32, on the device of the costs.

    Source: Sinkhorn's balancing of the codes with falling temperature (Cuturi, arXiv:1306.0895) and over-relaxation
        (Thibault et al., arXiv:1711.01851); the points' side is a softmax, so only the prices are kept.
    """
    num_points, num_codes = cost_NK.shape
    spread = torch.stack([(part.mean(1) - part.amin(1)).sum() for part in chunks_of(cost_NK, num_codes)]).sum()
    spread = (spread / num_points).clamp(min=1e-30)
    rounds, first = (ROUNDS, FIRST) if prices_K is None else (ROUNDS_AGAIN, FIRST_AGAIN)
    prices_K = cost_NK.new_zeros(num_codes) if prices_K is None else prices_K
    for i in range(rounds):
        cooled = min(1.0, i / (SETTLED * rounds))
        epsilon = spread * (first ** (1 - cooled) * LAST**cooled)
        load_K = _loads(cost_NK, prices_K, epsilon) * (num_codes / num_points)
        prices_K = prices_K + RELAXATION * epsilon * load_K.clamp(min=1e-6).log()
    return prices_K


def _loads(cost_NK: Tensor, prices_K: Tensor, epsilon: Tensor) -> Tensor:
    """(K,) points on each code when a point is shared out by the softmax of cost plus price."""
    loads_K = torch.zeros_like(prices_K)
    for part in chunks_of(cost_NK, cost_NK.shape[1]):
        loads_K += torch.add(prices_K, part).div_(-epsilon).softmax(1).sum(0)
    return loads_K


def round_to_balance(cost_NK: Tensor, prices_K: Tensor) -> Tensor:
    """Assign each point its cheapest code at these prices, then move points out of full codes, cheapest moves first.

    Returns:
        (N,) int64 codes, on the device of the costs; sizes differ by at most one.
    """
    num_points, num_codes = cost_NK.shape
    codes_N = _cheapest(cost_NK, prices_K)[1]
    while True:
        sizes_K = torch.bincount(codes_N, minlength=num_codes)
        allowed_K = torch.full_like(sizes_K, num_points // num_codes)
        allowed_K[sizes_K.argsort(descending=True, stable=True)[: num_points % num_codes]] += 1
        excess_K, room_K = (sizes_K - allowed_K).clamp(min=0), (allowed_K - sizes_K).clamp(min=0)
        if not excess_K.any():
            return codes_N
        rows = (excess_K > 0)[codes_N].nonzero().flatten()
        value, target = _cheapest(cost_NK[rows], prices_K.masked_fill(room_K == 0, torch.inf))
        source = codes_N[rows]
        order = (value - cost_NK[rows, source] - prices_K[source]).argsort(stable=True)
        order = order[_within(source[order], excess_K)]
        order = order[_within(target[order], room_K)]
        codes_N[rows[order]] = target[order]


def _cheapest(cost_NK: Tensor, prices_K: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) lowest cost plus price, and (N,) its code."""
    best = [(part + prices_K).min(1) for part in chunks_of(cost_NK, cost_NK.shape[1])]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])


def _within(codes: Tensor, quota_K: Tensor) -> Tensor:
    """Mask of the codes that, in this order, are among the first `quota_K` of their kind."""
    order = codes.argsort(stable=True)
    counts_K = torch.bincount(codes, minlength=len(quota_K))
    starts_K = counts_K.cumsum(0) - counts_K
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(codes), device=codes.device) - starts_K[codes[order]]
    return rank < quota_K[codes]


def onerec_assignment(cost_NK: Tensor, generator: torch.Generator) -> Tensor:
    """Let each code in turn take its nearest points among those that no code has taken yet.

    The last codes get what nobody wanted: balanced, but far from the lowest cost.

    Args:
        cost_NK: (N, K) cost of each point on each code.
        generator: CPU generator, which draws the order of the codes.

    Returns:
        (N,) int64 codes, on the device of the costs; where N / K is not whole, the first in turn take one point more.

    Source: OneRec (arXiv:2502.18965), balanced k-means, with N / K points per code. Departure: the codes take turns in
        a new random order, since the paper's order would favour the same codes in every iteration.
    """
    num_points, num_codes = cost_NK.shape
    least, more = divmod(num_points, num_codes)
    codes_N = torch.empty(num_points, dtype=torch.int64, device=cost_NK.device)
    left = torch.arange(num_points, device=cost_NK.device)
    for turn, code in enumerate(torch.randperm(num_codes, generator=generator).tolist()):
        order = cost_NK[left, code].argsort(stable=True)
        taken, kept = order.split([least + (turn < more), len(left) - least - (turn < more)])
        codes_N[left[taken]] = code
        left = left[kept.sort().values]
    return codes_N


def balanced_kmeans(
    points_ND: Tensor, num_codes: int, iterations: int, generator: torch.Generator, by_turns: bool = False
) -> tuple[Tensor, Tensor]:
    """k-means whose codes all have the same number of points, or one more.

    By prices, an iteration goes by the prices alone, which leaves sizes near each other; the codes that are returned
    are balanced exactly.

    Args:
        points_ND: (N, D) float32 on any device; the (N, num_codes) costs are held in addition. Points may be equal.
        num_codes: K, at most N.
        iterations: Updates of the codebook.
        generator: CPU generator of the k-means++ start, and of the order of turns.
        by_turns: Whether codes choose in turn, see `onerec_assignment`, instead of `balanced_assignment` by prices.

    Returns:
        (num_codes, D) float32 codebook, and (N,) int64 balanced codes of the points on it, on the device of the points.

    Raises:
        ValueError: If there are fewer points than codes.
    """
    if len(points_ND) < num_codes:
        raise ValueError(
            f"{len(points_ND)} points cannot fill {num_codes} balanced codes; use at most {len(points_ND)} codes."
        )
    codebook_KD, prices_K = kmeans_plus_plus(points_ND, num_codes, generator), None
    for _ in range(iterations):
        cost_NK = _costs(points_ND, codebook_KD)
        if by_turns:
            codes_N = onerec_assignment(cost_NK, generator)
        else:
            prices_K = balance_prices(cost_NK, prices_K)
            codes_N = _cheapest(cost_NK, prices_K)[1]
        codebook_KD, _ = code_means(points_ND, codes_N, codebook_KD)
    cost_NK = _costs(points_ND, codebook_KD)
    return codebook_KD, onerec_assignment(cost_NK, generator) if by_turns else balanced_assignment(cost_NK)


def _costs(points_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """(N, K) squared distances, made chunk by chunk so that nothing else of their size is held."""
    cost_NK = points_ND.new_empty(len(points_ND), len(codebook_KD))
    parts = chunks_of(points_ND, len(codebook_KD))
    for part, block in zip(parts, cost_NK.split(len(parts[0])), strict=True):
        block.copy_(squared_distances(part, codebook_KD))
    return cost_NK


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
