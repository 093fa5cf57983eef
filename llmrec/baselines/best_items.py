"""The best items by scores of the whole catalogue, as every ranker needs them that scores all items at once.

Shapes: B histories, N items, k places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.evaluation.ranking import UNFILLED, Ranking

BATCH = 512  # histories scored at once; bounds memory at BATCH x N scores
Exclusions = Sequence[np.ndarray] | None


def best_items(
    scores: Callable[[Sequence[np.ndarray], Exclusions], Tensor],
    histories: Sequence[np.ndarray],
    k: int,
    exclude: Exclusions,
) -> Ranking:
    """Rank the items with the largest scores, each place a group of its own.

    Args:
        scores: Gives (b, N) scores of b histories and the items excluded for each; what it gives may be changed.
        histories: B arrays of item rows, oldest first.
        k: Number of places.
        exclude: B arrays of item rows that may not be returned.

    Returns:
        Ranking of shape (B, k). A place is unfilled, with the score -inf, if too few items are left.
    """
    items, best = np.full((len(histories), k), UNFILLED), np.full((len(histories), k), -np.inf)
    for first in range(0, len(histories), BATCH):
        part = slice(first, first + BATCH)
        barred = None if exclude is None else exclude[part]
        found = scores(histories[part], barred)
        if barred is not None:
            rows = np.repeat(np.arange(len(barred)), [len(each) for each in barred])
            found[rows, np.concatenate([np.empty(0, np.int64), *barred])] = -torch.inf
        top, order = (each.cpu().numpy() for each in found.topk(min(k, found.shape[1])))
        best[part, : top.shape[1]] = top
        items[part, : top.shape[1]] = np.where(np.isfinite(top), order, UNFILLED)
    return Ranking(items, np.broadcast_to(np.arange(k), items.shape), best)
