"""Warm-up before the first request: everything that loads late is loaded, and on a GPU graphs are captured.

A service meets batches of all sizes. They are rounded up to a few, whose graphs are captured here, so that no request
waits for a capture. Larger batches, longer prompts and other filters are captured when they come up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmrec.decoding.answering import Answerer, AnswerSize
from llmrec.decoding.requests import ItemRequests
from llmrec.decoding.tree_forward import Rounding, padded_length
from llmrec.decoding.trie.leaf_mask import MIN_WIDTH

STEPS = 4  # lengths of a prompt; an eighth of the longest is wasted on average


def batch_sizes(most: int) -> list[int]:
    """Numbers of users that batches are rounded up to: 1, 8, 16, 32, 64 and so on."""
    return [1, *(size for size in (1 << power for power in range(3, 16)) if size < most), most] if most > 1 else [1]


def warm_up(answerer: Answerer, num_rows: Sequence[int], k: int) -> Iterator[tuple[int, int]]:
    """Answer made-up histories, on a GPU batches of every size twice, since the second one is captured.

    Args:
        answerer: Answers, and rounds all later batches up to these sizes if its ranker captures graphs.
        num_rows: Numbers of users of a batch, ascending.
        k: Number of items that most requests ask for, which sets the beam width.

    Yields:
        Number of users and of items in their histories, after every batch.
    """
    ranker = answerer.ranker
    longest = ranker.sid_config.max_history
    lengths = sorted({-(-longest * step // STEPS) for step in range(1, STEPS + 1)})
    histories = [np.resize(np.arange(ranker.table.num_items), length) for length in lengths]
    if not ranker.is_captured:
        yield from _answered(answerer, histories[:1], num_rows[:1], k)
        return
    prefix = len(ranker.prefix_ids)  # a single prompt is read together with it
    tokens = {padded_length(ranker.encode([history])[0].shape[1] + prefix) for history in histories}
    barred = 1 << (longest - 1).bit_length()  # columns for the items of a history
    ranker.round_up(Rounding(tuple(num_rows), tuple(sorted(tokens)), max(MIN_WIDTH, barred)))
    yield from _answered(answerer, histories * 2, num_rows, k)


def _answered(
    answerer: Answerer, histories: Sequence[np.ndarray], num_rows: Sequence[int], k: int
) -> Iterator[tuple[int, int]]:
    none = np.empty(0, np.int64)
    for history in histories:
        for rows in num_rows:
            many = [history] * rows
            asked = ItemRequests(many, many, none, [None] * rows, [[]] * rows, [])
            answerer.answer(asked, AnswerSize(k, 0, None, rows))
            yield rows, len(history)
