"""Collision policies: how items that share all codes become distinct, or are left to share.

suffix_ordinal     TIGER (arXiv:2305.05065): every item gets one more code, its ordinal among the items that share its
                   codes. All semantic IDs keep one length; the ordinal follows the item rows, which are shuffled.
sinkhorn_reassign  LC-Rec (arXiv:2311.09049) and LETTER: up to 20 times, the last code of each colliding group is chosen
                   again by Sinkhorn assignment inside the group. Departures: an item takes the cheapest of the codes
                   it is given (see _choose); the best round is kept, not the last, since a moved item may collide
                   elsewhere; what still collides gets suffix_ordinal.
accept             RPG (arXiv:2506.05781): items may share a semantic ID; metrics then share the credit.

Shapes: N items, L levels, K codes of the last level, G groups of B colliding items.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.residual import sinkhorn

ROUNDS = 20  # LC-Rec, official code
GROUP_BYTES = 64 * 2**20  # largest block of distances that one Sinkhorn call gets


def expected_collision_rate(num_items: int, level_sizes: list[int]) -> float:
    """Share of items that would collide if codes were drawn uniformly; real codes collide more often.

    Returns:
        1 - C (1 - (1 - 1/C)^N) / N for C, the number of distinct semantic IDs.
    """
    cells = math.prod(level_sizes)
    used = cells * -math.expm1(num_items * math.log1p(-1 / cells)) if cells > 1 else 1
    return 1 - used / num_items


def check_capacity(policy: str, num_items: int, level_sizes: list[int]) -> None:
    """Refuse, before anything is fitted, codes that are too few for a policy that promises no suffix.

    Raises:
        ValueError: If there are more items than codes and the policy is not suffix_ordinal.
    """
    cells, size, num_levels = math.prod(level_sizes), level_sizes[0], len(level_sizes)
    if num_items > cells and policy != "suffix_ordinal":
        rate = expected_collision_rate(num_items, level_sizes)
        raise ValueError(
            f"{num_items} items cannot be told apart by {num_levels} levels of {size} codes ({cells} semantic IDs; "
            f"at least {rate:.0%} would collide). Use num_levels {math.ceil(math.log(num_items, size))} or more, "
            f"codebook_size {math.ceil(num_items ** (1 / num_levels))} or more, or collision 'suffix_ordinal'."
        )


def resolve(policy: str, encoded: Encoded, level_sizes: list[int]) -> tuple[np.ndarray, list[int], list[str]]:
    """Apply a collision policy.

    Args:
        policy: suffix_ordinal, sinkhorn_reassign or accept.
        encoded: Codes of all items, and the costs of moving them at the last level.
        level_sizes: Number of codes of each level.

    Returns:
        (N, L or L + 1) int64 codes, which are distinct except under `accept`; their level sizes; what a reader of the
        report should know.
    """
    codes_NL, notes = encoded.codes, []
    if policy == "accept":
        return codes_NL, level_sizes, notes
    if policy == "sinkhorn_reassign":
        codes_NL, rounds = sinkhorn_reassign(encoded)
        left = num_collisions(codes_NL)
        notes.append(f"sinkhorn_reassign ran {rounds} rounds: {num_collisions(encoded.codes)} -> {left} collisions.")
        if left == 0:
            return codes_NL, level_sizes, notes
        notes.append("What still collides was told apart by suffix_ordinal.")
    codes_NL, suffix_size = suffix_ordinal(codes_NL, level_sizes[-1])
    if suffix_size > level_sizes[-1]:
        notes.append(f"{suffix_size} items share all codes, so the suffix level has {suffix_size} codes.")
    assert num_collisions(codes_NL) == 0
    return codes_NL, [*level_sizes, suffix_size], notes


def num_collisions(codes_NL: np.ndarray) -> int:
    """Number of items less the number of distinct semantic IDs."""
    return len(codes_NL) - len(np.unique(codes_NL, axis=0))


def suffix_ordinal(codes_NL: np.ndarray, codebook_size: int) -> tuple[np.ndarray, int]:
    """Append a level with the ordinal of each item among the items with the same codes.

    Returns:
        (N, L + 1) int64 codes and the size of the new level: `codebook_size`, or the largest bucket if that is larger.
    """
    order_N, starts, counts = _buckets(codes_NL)
    ordinal_N = np.empty(len(codes_NL), np.int64)
    ordinal_N[order_N] = np.arange(len(codes_NL)) - np.repeat(starts, counts)
    return np.column_stack([codes_NL, ordinal_N]), max(codebook_size, int(counts.max()))


def sinkhorn_reassign(encoded: Encoded) -> tuple[np.ndarray, int]:
    """Choose the last code of colliding items again until none collide, at most 20 times.

    Returns:
        (N, L) int64 codes of the round with the fewest collisions, and the number of rounds run.
    """
    codes_NL = best_NL = encoded.codes
    fewest, rounds = num_collisions(best_NL), 0
    while fewest and rounds < ROUNDS:
        codes_NL, rounds = _reassign_once(codes_NL, encoded), rounds + 1
        left = num_collisions(codes_NL)
        if left < fewest:
            best_NL, fewest = codes_NL, left
    return best_NL, rounds


def _reassign_once(codes_NL: np.ndarray, encoded: Encoded) -> np.ndarray:
    """One round; groups of one size are solved together, as the problems do not depend on each other."""
    order_N, starts, counts = _buckets(codes_NL)
    result_NL = codes_NL.copy()
    for size in np.unique(counts[counts > 1]):
        rows_GB = order_N[starts[counts == size][:, None] + np.arange(size)]
        num_codes = encoded.last_level_cost(rows_GB[0, :1]).shape[1]
        for part_GB in torch.from_numpy(rows_GB).split(max(1, GROUP_BYTES // (8 * int(size) * num_codes))):
            cost_GBK = encoded.last_level_cost(part_GB.flatten().numpy()).reshape(*part_GB.shape, -1)
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
    log_q = sinkhorn(cost_GBK)
    given = log_q >= log_q.amax(2, keepdim=True) - math.log(2)
    return cost_GBK.masked_fill(~given, torch.inf).argmin(2)


def _buckets(codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Item rows sorted by bucket (and by row within one), and where each bucket starts and how many items it has."""
    _, bucket_N, counts = np.unique(codes_NL, axis=0, return_inverse=True, return_counts=True)
    order_N = np.argsort(bucket_N.reshape(-1), kind="stable")
    return order_N, np.cumsum(counts) - counts, counts
