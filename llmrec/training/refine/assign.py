"""Assignment of items to semantic IDs: the moves with the largest sum of gains, no semantic ID taken twice.

An item keeps its own semantic ID or takes a free one, so items that stay are in nobody's way. Of the best assignment,
which is found exactly, the moves that gain most are made, up to the largest churn; a part of it is free of collisions,
too. Every move gains, so that the sum of the scores never falls.

Source: SIIT (arXiv:2412.17171) avoids collisions; assignment, least gain and the bound on churn are ours.

Shapes: N items, C proposals of an item.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from llmrec.sid.table import SidTable
from llmrec.training.refine.proposals import NONE, Proposals


def assign(proposals: Proposals, max_churn: float, min_gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose the moves.

    Args:
        proposals: Free semantic IDs of each item, and their gains.
        max_churn: Largest share of the items that move.
        min_gain: Least gain of a move, in nats.

    Returns:
        (N,) int64 free semantic ID that each item takes, -1 for its own; and (N,) its gain, 0 if it stays.
    """
    num_items = len(proposals.sids)
    chosen, gain = np.full(num_items, NONE), np.zeros(num_items)
    item, place = np.nonzero((proposals.sids != NONE) & (proposals.gains >= min_gain) & (proposals.gains > 0))
    if not len(item):
        return chosen, gain
    gains = proposals.gains[item, place]
    sids, column = np.unique(proposals.sids[item, place], return_inverse=True)
    movers, row = np.unique(item, return_inverse=True)
    # A column of its own stands for the semantic ID that an item has. The matching takes no weight of zero.
    base = 1 + gains.max()
    weights = np.concatenate([base - gains, np.full(len(movers), base)])
    rows = np.concatenate([row, np.arange(len(movers))])
    columns = np.concatenate([column, len(sids) + np.arange(len(movers))])
    matched = min_weight_full_bipartite_matching(csr_array((weights, (rows, columns))))[1]
    moves = np.flatnonzero(matched < len(sids))
    new = sids[matched[moves]]
    won = proposals.gains[movers[moves]][proposals.sids[movers[moves]] == new[:, None]]
    best = np.argsort(-won, kind="stable")[: int(max_churn * num_items)]
    chosen[movers[moves[best]]], gain[movers[moves[best]]] = new[best], won[best]
    return chosen, gain


def move_items(table: SidTable, free_FL: np.ndarray, chosen: np.ndarray) -> SidTable:
    """Table in which items have the (N,) free semantic IDs that were chosen for them, -1 for their own."""
    codes = table.codes(np.arange(table.num_items)).copy()
    moves = chosen != NONE
    codes[moves] = free_FL[chosen[moves]]
    return SidTable(table.item_ids, codes, level_sizes=table.level_sizes)
