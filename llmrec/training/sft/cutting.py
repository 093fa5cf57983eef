"""Windows of all training sequences as one Arrow table, without a Python object for each item or example."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset

from llmrec.data.windows import windows
from llmrec.decoding.trie.leaf_items import ragged

HISTORY_COLUMNS = ("rows", "num_context", "user", "start")
SEQUENCES_AT_ONCE = 2**14  # which are cut together; the rows of their examples must be fewer than 2^31


def cut(
    rows: np.ndarray, offsets: np.ndarray, max_history: int, targets: Literal["every_item", "last_item"]
) -> Dataset:
    """Cut item sequences, which lie one behind another, into training examples without a Python object for each.

    Args:
        rows: (T,) int64 item rows of all sequences.
        offsets: (S + 1,) bounds of each of S sequences.
        max_history: Largest number of items before a target.
        targets: As in `build_dataset`.

    Returns:
        Dataset with the columns of `Example` that a history has.
    """
    parts = []
    for first in range(0, max(1, len(offsets) - 1), SEQUENCES_AT_ONCE):
        bounds = offsets[first : first + SEQUENCES_AT_ONCE + 1]
        user, start, end, target = windows(np.diff(bounds), max_history)
        if targets == "last_item":
            each, place = ragged(target, end - target)
            user, start, end, target = user[each], start[each], place + 1, place
        places = ragged(bounds[user] + start, end - start)[1]
        ends = pa.array(np.append(0, np.cumsum(end - start)), pa.int32())  # refuses what int32 does not hold
        lists = pa.ListArray.from_arrays(ends, rows[places])
        columns = (lists, target - start, user + first, start)
        parts.append(pa.table(dict(zip(HISTORY_COLUMNS, columns, strict=True))))
    return Dataset(pa.concat_tables(parts))
