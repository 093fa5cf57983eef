"""Collision policies: how items that share all codes become distinct, or are left to share.

suffix_ordinal      TIGER (arXiv:2305.05065): every item gets one more code, its ordinal among the items that share its
                    codes. Semantic IDs keep one length; the ordinal follows the item rows, which are shuffled.
suffix_if_collided  MiniOneRec (arXiv:2510.24431): only items that share their codes get it, so that lengths differ.
sinkhorn_reassign   LC-Rec (arXiv:2311.09049): the last code is chosen again; what still collides gets suffix_ordinal.
hungarian_leaf      ReSID (arXiv:2602.02338): the items of a parent take distinct last codes.
accept              RPG (arXiv:2506.05781): items may share a semantic ID; metrics then share the credit.

All but `accept` end in distinct semantic IDs, or refuse. The policies that move last codes (reassign.py says how) need
a tokenizer that knows what each would cost, and semantic IDs of one length.

Shapes: N items, L levels.
"""

from __future__ import annotations

import math
import typing

import numpy as np

from llmrec.configs.tokenize import Collision
from llmrec.sid.groups import num_collisions, ordinals
from llmrec.sid.table import EMPTY
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.collisions.reassign import Cost, hungarian_leaf, sinkhorn_reassign
from llmrec.tokenizers.collisions.suffix import add_suffix

POLICIES: tuple[str, ...] = typing.get_args(Collision)
SUFFIX = ("suffix_ordinal", "suffix_if_collided")  # with room for any number of items
NEED_COSTS = ("sinkhorn_reassign", "hungarian_leaf")


def expected_collision_rate(num_items: int, level_sizes: list[int]) -> float:
    """Share of items that would collide if codes were drawn uniformly; real codes collide more often.

    Returns:
        1 - C (1 - (1 - 1/C)^N) / N for C, the number of distinct semantic IDs.
    """
    cells = math.prod(level_sizes)
    used = cells * -math.expm1(num_items * math.log1p(-1 / cells)) if cells > 1 else 1
    return 1 - used / num_items


def check_capacity(policy: str, num_items: int, level_sizes: list[int]) -> None:
    """Refuse, before the fit, too few codes for a policy that does not give every item a suffix.

    A parent with more items than `hungarian_leaf` has room for is found after the fit only.

    Raises:
        ValueError: If there are more items than codes.
    """
    cells, size, num_levels = math.prod(level_sizes), level_sizes[0], len(level_sizes)
    if num_items > cells and policy not in SUFFIX:
        rate = expected_collision_rate(num_items, level_sizes)
        raise ValueError(
            f"{num_items} items cannot be told apart by {num_levels} levels of {size} codes ({cells} semantic IDs; "
            f"at least {rate:.0%} would collide) under collision '{policy}'. Use num_levels "
            f"{math.ceil(math.log(num_items, size))} or more, codebook_size {math.ceil(num_items ** (1 / num_levels))} "
            "or more, or collision 'suffix_ordinal'."
        )


def resolve(policy: str, encoded: Encoded, level_sizes: list[int]) -> tuple[np.ndarray, list[int], list[str]]:
    """Apply a collision policy.

    Args:
        policy: One of those above.
        encoded: Codes of all items, and the costs of moving them at the last level.
        level_sizes: Number of codes of each level.

    Returns:
        (N, L or L + 1) int64 codes, which are distinct except under `accept`; their level sizes; sentences for the
        report.

    Raises:
        ValueError: If the policy does not go with the tokenizer, or leaves no room for the items of a parent.
    """
    if policy == "accept":
        return encoded.codes, level_sizes, []
    codes_NL = encoded.codes
    notes: list[str] = []
    if policy in NEED_COSTS:
        codes_NL, notes = _reassign(policy, codes_NL, require_costs(policy, encoded))
    ordinal_N, sharing_N = ordinals(codes_NL)
    if policy in NEED_COSTS and sharing_N.max() == 1:
        return codes_NL, level_sizes, notes
    only_shared = policy == "suffix_if_collided"
    chosen_N = sharing_N > 1 if only_shared else None
    resolved, sizes = add_suffix(codes_NL, ordinal_N, level_sizes, level_sizes[-1], chosen_N)
    if policy == "sinkhorn_reassign":
        notes.append("What still collides was told apart by suffix_ordinal.")
    elif only_shared:
        notes.append(f"{(sharing_N > 1).sum()} of {len(sharing_N)} items share their codes and got a suffix.")
    if len(sizes) > len(level_sizes) and sizes[-1] > level_sizes[-1]:
        notes.append(f"{sizes[-1]} items share all codes, so the suffix level has {sizes[-1]} codes.")
    assert num_collisions(resolved) == 0
    return resolved, sizes, notes


def require_costs(policy: str, encoded: Encoded) -> Cost:
    """Refuse codes whose last level cannot be chosen again.

    Returns:
        `encoded.last_level_cost`.

    Raises:
        ValueError: If the tokenizer knows of no cost, or its semantic IDs differ in length.
    """
    if encoded.last_level_cost is None:
        raise ValueError(
            f"collision '{policy}' needs to know how far items are from codes, which this tokenizer does not; use "
            "suffix_ordinal, suffix_if_collided or accept."
        )
    if (encoded.codes == EMPTY).any():
        raise ValueError(
            f"collision '{policy}' chooses last codes again, and the semantic IDs of this tokenizer end at different "
            "levels; use suffix_ordinal, suffix_if_collided or accept."
        )
    return encoded.last_level_cost


def _reassign(policy: str, before_NL: np.ndarray, cost: Cost) -> tuple[np.ndarray, list[str]]:
    """(N, L) codes after the last ones were chosen again, and sentences for the report."""
    before = num_collisions(before_NL)
    if policy == "sinkhorn_reassign":
        codes_NL, rounds = sinkhorn_reassign(before_NL, cost)
        return codes_NL, [f"sinkhorn_reassign ran {rounds} rounds: {before} -> {num_collisions(codes_NL)} collisions."]
    codes_NL = hungarian_leaf(before_NL, cost)
    moved = int((codes_NL != before_NL).any(axis=1).sum())
    return codes_NL, [
        f"{policy} gave {moved} items another last code: {before} -> {num_collisions(codes_NL)} collisions."
    ]


__all__ = [
    "NEED_COSTS", "POLICIES", "SUFFIX", "check_capacity", "expected_collision_rate", "num_collisions", "require_costs",
    "resolve",
]  # fmt: skip
