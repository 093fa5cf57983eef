"""The rows that judge a network whose item vectors become a view: training items, held out of training once more.

Views must not know the validation and test items (law 1), and an epoch chosen by them would. So the last item of a
tenth of the training sequences (of up to half, where the log is small) is taken away and ranked after each epoch; valid
and test rows are never read. These items are not trained on. The alternative, to train a second time on everything for
the epochs found, would double the time for a tenth of an item per user.

No item loses its only training interaction, and no sequence is cut below the two items from which something is learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmrec.data import columns
from llmrec.data.catalog import Catalog

SHARE = 0.1  # of the sequences that may judge
# Judges, or half of the sequences that may where these are fewer. On a simulated log of 200 users (seeds 0, 1, 2) 11
# judges chose epochs 2, 8 and 22 of SASRec and 56, 1 and 11 of LightGCN; 55 chose 89, 25 and 62, and 96, 63 and 167.
LEAST = 200
MAX_HISTORY = 50  # items before a judged one, and so SASRec's positions: the paper's number for its sparse sets
SHORTEST = 3  # items of a sequence that may judge


def hold_out(catalog: Catalog, seed: int) -> Catalog:
    """A catalogue over the same items, all of it out of `catalog.train`.

    Its training rows are those of `catalog`, in the same order, some of them without their last item; its valid rows
    end in these items, which are new to their users and occur before the end of some sequence; it has no test rows.

    Args:
        catalog: Of which the training rows alone are read.
        seed: Of the draw.

    Raises:
        ValueError: If no training sequence may judge.
    """
    train = catalog.train
    lengths = np.diff(train.offsets) + 1
    owner = np.repeat(np.arange(len(train)), lengths - 1)
    repeats = np.bincount(owner, train.values == train.targets[owner], minlength=len(train)) > 0
    kept = np.isin(train.targets, train.values)
    able = np.flatnonzero((lengths >= SHORTEST) & kept & ~repeats)
    if not len(able):
        raise ValueError(
            f"None of the {len(train)} training sequences of '{catalog.source}' has {SHORTEST} items and ends in one "
            "that is new to its user and not the last everywhere, by which the epoch of sasrec, lightgcn and "
            "famae is chosen; run `llmrec prepare` with more users or a smaller k_core, or leave them out of `views`."
        )
    count = max(1, round(SHARE * len(able)), min(LEAST, len(able) // 2))
    judges = np.random.default_rng(seed).choice(able, count, replace=False)
    sequences = train.sequences()
    judged = [sequences[row][-MAX_HISTORY - 1 :] for row in judges]
    for row in judges:
        sequences[row] = sequences[row][:-1]
    parts = [
        _rows("train", train.user_ids, sequences, catalog),
        _rows("valid", [train.user_ids[row] for row in judges], judged, catalog),
    ]
    return Catalog(catalog.items, pa.concat_tables(parts), catalog.source)


def _rows(split: str, user_ids: Sequence[str], sequences: Sequence[np.ndarray], catalog: Catalog) -> pa.Table:
    """Rows of split.parquet; the last item of each sequence is the target."""
    item_ids = pa.array(catalog.item_ids)
    offsets = np.cumsum([0, *(len(sequence) - 1 for sequence in sequences)], dtype=np.int32)
    histories = item_ids.take(pa.array(np.concatenate([sequence[:-1] for sequence in sequences])))
    return pa.table(
        {
            columns.USER_ID: pa.array(user_ids, pa.string()),
            columns.SPLIT: [split] * len(sequences),
            columns.HISTORY: pa.ListArray.from_arrays(offsets, histories),
            columns.TARGET: item_ids.take(pa.array([sequence[-1] for sequence in sequences])),
        }
    )
