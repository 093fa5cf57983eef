"""Bounds of what a checkpoint says about its tokens and semantic IDs, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

EMPTY = -1  # code in the levels beyond a SID's length
MOST_LEVELS = 64
LARGEST = 2**31 - 1  # token id, or number of codes of a level


def check_layout(
    level_sizes: Sequence[int],
    starts: Sequence[int],
    block_sizes: Sequence[int],
    eos_token_id: int,
    end: int,
    one_block: bool = False,
) -> None:
    """Refuse blocks of tokens that `SidVocabulary.add_to` does not make.

    Args:
        level_sizes: Number of codes of each level.
        starts: Token id of code 0 of each level.
        block_sizes: Number of tokens of each level.
        eos_token_id: Token that ends an answer.
        end: Token id behind all tokens.
        one_block: All levels have the same block, instead of one each.

    Raises:
        ValueError: If there are too many levels, a number is no integer or out of bounds, or blocks are not next to one
            another, or not the same.
    """
    shown = f"level_sizes {_short(level_sizes)}, starts {_short(starts)}, block_sizes {_short(block_sizes)}"
    if not 0 < len(level_sizes) == len(starts) == len(block_sizes) <= MOST_LEVELS:
        raise ValueError(f"vocabulary: {shown} must have one number per level, of 1 to {MOST_LEVELS} levels")
    numbers = (*level_sizes, *starts, *block_sizes, eos_token_id, end)
    if not all(type(number) is int and 0 <= number <= LARGEST for number in numbers):
        raise ValueError(f"vocabulary: {shown}, eos_token_id {eos_token_id!r}; integers from 0 to 2^31 - 1 are needed")
    if not all(0 < size <= block for size, block in zip(level_sizes, block_sizes, strict=True)):
        raise ValueError(f"vocabulary: {shown}; each level needs a code, and a token for each of its codes")
    ends = [start + block for start, block in zip(starts, block_sizes, strict=True)]
    if one_block:
        if len(set(zip(level_sizes, starts, block_sizes, strict=True))) > 1:
            raise ValueError(f"vocabulary: {shown}; all levels need the same codes and the same block of tokens")
    elif any(start != before for before, (_, start) in zip(ends, pairwise(starts), strict=False)):
        raise ValueError(f"vocabulary: {shown}; the blocks of tokens must lie next to one another")


def _short(numbers: Sequence[int]) -> str:
    text = str(list(numbers[:8]))
    return text if len(text) < 100 else f"{text[:100]}…"
