"""Collision policies for new items of a catalogue with published semantic IDs, which never move.

suffix_ordinal      The least free ordinal of the bucket; the suffix level grows where they run out.
suffix_if_collided  The cheapest last code that nobody has, or whose bucket has suffixes, for its next ordinal. Behind a
                    published semantic ID without a suffix there can be none: it would no longer be complete.
sinkhorn_reassign   The cheapest last code that nobody has; where there is none, the next ordinal of the nearest one, if
                    the published semantic IDs have a suffix.
hungarian_leaf      The cheapest last code that nobody has; where a parent is full, under the nearest one that is not,
                    if the tokenizer knows which that is (GAOQ).
accept              Shared with whoever has the codes.

Items take their turns in the order of their rows.

Shapes: P published items, A new ones, B of a parent, L levels of the tokenizer, S of the table, K codes of the last.
"""

from __future__ import annotations

import numpy as np

from llmrec.sid.groups import buckets
from llmrec.sid.table import EMPTY
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.collisions import require_costs
from llmrec.tokenizers.collisions.reassign import Cost
from llmrec.tokenizers.collisions.suffix import least_free

KEEP_CODES = ("suffix_ordinal", "accept")  # the others may move a last code
NO_ROOM = -1  # in the place of a code


def codes_of_new_items(policy: str, published_PS: np.ndarray, encoded: Encoded, new_rows: np.ndarray) -> np.ndarray:
    """Choose codes of new items; all published ones stay as they are.

    Args:
        policy: Collision policy of the published codes.
        published_PS: (P, S) int64; S is L, or L + 1 where there is a suffix.
        encoded: Codes and costs of the new catalogue.
        new_rows: (A,) item rows without published codes.

    Returns:
        (A, S) int64; a suffix may lie beyond its level, which then has to grow.

    Raises:
        ValueError: If no code is free where a new item belongs.
    """
    levels = encoded.codes.shape[1]
    if policy == "hungarian_leaf" and encoded.place is not None and len(new_rows):
        return encoded.place(new_rows, published_PS)
    own_AL, has_suffix = encoded.codes[new_rows], published_PS.shape[1] > levels
    codes_AL = own_AL
    if policy not in KEEP_CODES:
        codes_AL = _place(policy, published_PS, own_AL, require_costs(policy, encoded), new_rows)
    if not has_suffix:
        return codes_AL
    # Those of a bucket are 0 … n-1 after `tokenize`; after `alternate`, where items move on, some may be free.
    taken_P = np.maximum(published_PS[:, levels], 0)  # alone under `suffix_if_collided`: the first
    wanted = np.append(taken_P, np.full(len(codes_AL), EMPTY))
    suffix_A = least_free(np.concatenate([published_PS[:, :levels], codes_AL]), wanted)[len(published_PS) :]
    if policy == "suffix_if_collided":
        suffix_A = np.where(suffix_A == 0, EMPTY, suffix_A)
    return np.column_stack([codes_AL, suffix_A])


def _place(policy: str, published_PS: np.ndarray, own_AL: np.ndarray, cost: Cost, new_rows: np.ndarray) -> np.ndarray:
    """(A, L) codes of the new items, the last ones chosen where there is room; parent after parent."""
    num_old, last, codes_AL = len(published_PS), own_AL.shape[1] - 1, own_AL.copy()
    may_share = policy == "sinkhorn_reassign" and published_PS.shape[1] > last + 1
    order, starts, counts = buckets(np.concatenate([published_PS[:, :last], codes_AL[:, :last]]))
    has_new = np.maximum.reduceat(order >= num_old, starts)
    for start, count in zip(starts[has_new], counts[has_new], strict=True):
        rows = order[start : start + count]
        old, new = rows[rows < num_old], rows[rows >= num_old] - num_old
        cost_BK = cost(new_rows[new]).numpy()
        chosen_B = cheapest_with_room(cost_BK, _room(policy, published_PS[old, last:], cost_BK.shape[1]))
        full_B = chosen_B == NO_ROOM
        if full_B.any() and not may_share:
            raise ValueError(
                f"{len(new)} new items belong under the codes {codes_AL[new[0], :last].tolist()}, where "
                f"{full_B.sum()} of them find no free last code under collision '{policy}'. Run `llmrec tokenize` "
                "without append, with more levels or codes, and train again; suffix_ordinal always has room for more."
            )
        codes_AL[new, last] = np.where(full_B, codes_AL[new, last], chosen_B)
    return codes_AL


def _room(policy: str, published: np.ndarray, num_codes: int) -> np.ndarray:
    """(K,) new items that each last code of a parent can take, given the last code and suffix, if any, of its items."""
    room_K = 1 - np.bincount(published[:, 0], minlength=num_codes)
    if policy == "suffix_if_collided" and published.shape[1] > 1:
        room_K[published[published[:, 1] != EMPTY, 0]] = np.iinfo(np.int64).max
    return room_K


def cheapest_with_room(cost_BK: np.ndarray, room_K: np.ndarray) -> np.ndarray:
    """Choose each item's cheapest code among those that have room, one item after another.

    Args:
        cost_BK: (B, K) cost of each code for the items.
        room_K: (K,) items that each code can still take.

    Returns:
        (B,) int64 codes; NO_ROOM where there is no room left.
    """
    room_K, codes_B = room_K.copy(), np.full(len(cost_BK), NO_ROOM)
    for item, cost_K in enumerate(cost_BK):
        code = int(np.where(room_K > 0, cost_K, np.inf).argmin())
        if room_K[code] <= 0:
            break
        codes_B[item] = code
        room_K[code] -= 1
    return codes_B
