"""Policies that choose the last code again, by the cost of each code of the last level for an item.

sinkhorn_reassign  LC-Rec (arXiv:2311.09049) and LETTER: up to 20 times, the last code of each colliding group is chosen
                   by Sinkhorn assignment inside the group. Departures: an item takes the cheapest of the codes it is
                   given (see _choose); the best round is kept, not the last, since a moved item may collide elsewhere.
hungarian_leaf     ReSID (arXiv:2602.02338): the items of a parent (all codes but the last) take distinct last codes, at
                   the least sum of costs. ReSID matches by cosine to random anchors; here it is the tokenizer's cost.

Shapes: N items, L levels, K codes of the last level, G groups of B colliding items, B items of a parent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from llmrec.sid.groups import buckets, num_collisions
from llmrec.tokenizers.shared.balanced import sinkhorn

ROUNDS = 20  # LC-Rec, official code
GROUP_BYTES = 64 * 2**20  # largest block of distances that one Sinkhorn call gets
Cost = Callable[[np.ndarray], Tensor]  # item rows (n,) -> (n, K) cost of each code of the last level


def sinkhorn_reassign(before_NL: np.ndarray, cost: Cost) -> tuple[np.ndarray, int]:
    """Choose the last code of colliding items again until none collide, at most 20 times.

    Args:
        before_NL: (N, L) int64 codes.
        cost: Item rows (n,) -> (n, K) cost of each code of the last level.

    Returns:
        (N, L) int64 codes of the round with the fewest collisions, and the number of rounds run.
    """
    codes_NL = best_NL = before_NL
    fewest, rounds = num_collisions(best_NL), 0
    while fewest and rounds < ROUNDS:
        codes_NL, rounds = _reassign_once(codes_NL, cost), rounds + 1
        left = num_collisions(codes_NL)
        if left < fewest:
            best_NL, fewest = codes_NL, left
    return best_NL, rounds


def _reassign_once(codes_NL: np.ndarray, cost: Cost) -> np.ndarray:
    """One round; groups of one size are solved together, as the problems do not depend on each other."""
    order_N, starts, counts = buckets(codes_NL)
    result_NL = codes_NL.copy()
    for size in np.unique(counts[counts > 1]):
        rows_GB = order_N[starts[counts == size][:, None] + np.arange(size)]
        num_codes = cost(rows_GB[0, :1]).shape[1]
        for part_GB in torch.from_numpy(rows_GB).split(max(1, GROUP_BYTES // (8 * int(size) * num_codes))):
            cost_GBK = cost(part_GB.flatten().numpy()).reshape(*part_GB.shape, -1)
            result_NL[part_GB.numpy(), -1] = _choose(cost_GBK).numpy()
    return result_NL


def _choose(cost_GBK: Tensor) -> Tensor:
    """Each point's cheapest code among those that Sinkhorn gives it, by at least half of its largest mass.

    A group is far smaller than a codebook, so a point gets many codes, all with mass 1/K: LC-Rec's argmax takes one of
    them by rounding error. On MovieTweetings the mean squared distance of colliding items to their last code was .82
    before, 1.74 by argmax, 1.86 at random and .86 by this rule, which leaves more collisions to the suffix (35, not 3).

    Returns:
        (G, B) int64 codes.
    """
    # An infinite cost, of a code that the parent does not have, would leave no number in a whole group.
    worst = cost_GBK.masked_fill(cost_GBK.isinf(), 0).amax()
    log_q = sinkhorn(cost_GBK.clamp(max=worst))
    given = log_q >= log_q.amax(2, keepdim=True) - math.log(2)
    return cost_GBK.masked_fill(~given, torch.inf).argmin(2)


def hungarian_leaf(before_NL: np.ndarray, cost: Cost) -> np.ndarray:
    """Give the items of each parent distinct last codes at the least sum of costs.

    Args:
        before_NL: (N, L) int64 codes.
        cost: Item rows (n,) -> (n, K) cost of each code of the last level.

    Returns:
        (N, L) int64 codes, all distinct; a parent whose items do not collide stays as it is.

    Raises:
        ValueError: If a parent has more than K items.
    """
    codes_NL, num_codes = before_NL.copy(), cost(np.arange(1)).shape[1]
    for rows_B in _crowded_parents(before_NL, num_codes):
        codes_NL[rows_B, -1] = linear_sum_assignment(cost(rows_B).numpy())[1]
    return codes_NL


def _crowded_parents(codes_NL: np.ndarray, num_codes: int) -> Iterator[np.ndarray]:
    """Item rows of each parent with items that share all codes; refuses first what no code has room for."""
    order_N, starts, counts = buckets(codes_NL[:, :-1])
    if counts.max() > num_codes:
        largest = int(counts.argmax())
        prefix = codes_NL[order_N[starts[largest]], :-1].tolist()
        raise ValueError(
            f"{counts[largest]} items share the codes {prefix}, and the last level has room for {num_codes} of them, "
            "one per code. Use more levels, a larger codebook_size, or collision 'suffix_ordinal', which always has "
            "room."
        )
    _, cell_starts, cell_counts = buckets(codes_NL)  # sorted by parent first, as order_N is
    crowded = np.maximum.reduceat(cell_counts, np.searchsorted(cell_starts, starts)) > 1
    for start, count in zip(starts[crowded], counts[crowded], strict=True):
        yield order_N[start : start + count]
