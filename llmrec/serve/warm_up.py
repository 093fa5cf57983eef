"""Warm-up of a ranker before its first request: everything that loads late is loaded, and on a GPU graphs are captured.

A service meets batches of all sizes. They are rounded up to a few, whose graphs are captured here, so that no request
waits for a capture. Larger batches, longer prompts and other filters are captured when they come up.

Shapes: B histories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.tree_forward import Rounding, padded_length
from llmrec.decoding.trie.leaf_mask import MIN_WIDTH

STEPS = 4  # lengths of a prompt; an eighth of the longest is wasted on average


def warm_up(ranker: SidRanker, num_rows: Sequence[int], k: int) -> Iterator[tuple[int, int]]:
    """Rank made-up histories, on a GPU batches of every size twice, since the second one is captured.

    Args:
        ranker: The ranker, which rounds all later batches up to these sizes if it captures graphs.
        num_rows: Numbers of histories of a batch, ascending.
        k: Number of items that most requests ask for, which sets the beam width.

    Yields:
        Number of histories and of items in each, after every batch that was ranked.
    """
    longest = ranker.sid_config.max_history
    lengths = sorted({-(-longest * step // STEPS) for step in range(1, STEPS + 1)})
    histories = [np.resize(np.arange(ranker.table.num_items), length) for length in lengths]
    if not ranker.is_captured:
        yield from _ranked(ranker, histories[:1], num_rows[:1], k)
        return
    prefix = len(ranker.prefix_ids)  # a single prompt is read together with it
    tokens = {padded_length(ranker.encode([history])[0].shape[1] + prefix) for history in histories}
    barred = 1 << (longest - 1).bit_length()  # columns for the items of a history
    ranker.round_up(Rounding(tuple(num_rows), tuple(sorted(tokens)), max(MIN_WIDTH, barred)))
    yield from _ranked(ranker, histories * 2, num_rows, k)


def _ranked(
    ranker: SidRanker, histories: Sequence[np.ndarray], num_rows: Sequence[int], k: int
) -> Iterator[tuple[int, int]]:
    for history in histories:
        for rows in num_rows:
            ranker.rank([history] * rows, k, exclude=[history] * rows)
            yield rows, len(history)
