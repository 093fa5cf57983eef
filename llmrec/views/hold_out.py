"""Validation examples for networks whose item vectors become a view, held out of the training interactions.

Views must not know the validation and test items (law 1), so these cannot choose the best epoch of a view. Instead the
last item of a tenth of the training sequences (of up to half in a small log) is held out and ranked after each epoch;
it is not trained on. The alternative, a second training on everything for as many epochs, would double the time to gain
a tenth of an item per user.

No item loses its only training interaction, and no sequence becomes shorter than two items, the least to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmrec.data import columns
from llmrec.data.catalog import Catalog

SHARE = 0.1  # of the sequences that can give an item
# Validation examples, or half of the sequences that can give one if these are fewer. On a simulated log of 200 users
# (seeds 0, 1, 2) 11 examples chose epochs 2, 8 and 22 of SASRec and 56, 1 and 11 of LightGCN; 55 chose 89, 25 and 62,
# and 96, 63 and 167.
LEAST = 200
MAX_HISTORY = 50  # items before a held-out one, and so SASRec's positions: the paper's number for its sparse sets
SHORTEST = 3  # items of a sequence that can give its last one


def hold_out(catalog: Catalog, seed: int) -> Catalog:
    """Split the training examples of a catalogue once more, into training and validation examples.

    Args:
        catalog: Catalogue whose training examples are read, and no others.
        seed: Seed of the draw.

    Returns:
        Catalogue over the same items. Its training examples are those of `catalog` in the same order, some of them
        without their last item. Its validation examples have these items as targets; each is new to its user and occurs
        before the end of some sequence. It has no test examples.

    Raises:
        ValueError: If no training sequence can give an item.
    """
    train = catalog.train
    lengths = np.diff(train.offsets) + 1
    owner = np.repeat(np.arange(len(train)), lengths - 1)
    repeats = np.bincount(owner, train.values == train.targets[owner], minlength=len(train)) > 0
    kept = np.isin(train.targets, train.values)
    eligible = np.flatnonzero((lengths >= SHORTEST) & kept & ~repeats)
    if not len(eligible):
        raise ValueError(
            f"None of the {len(train)} training sequences of '{catalog.source}' has {SHORTEST} items and ends in one "
            "that is new to its user and not the last everywhere. sasrec, lightgcn and famae need such items to choose "
            "their epoch; run `llmrec prepare` with more users or a smaller k_core, or leave them out of `views`."
        )
    count = max(1, round(SHARE * len(eligible)), min(LEAST, len(eligible) // 2))
    chosen = np.random.default_rng(seed).choice(eligible, count, replace=False)
    sequences = train.sequences()
    held_out = [sequences[user][-MAX_HISTORY - 1 :] for user in chosen]
    for user in chosen:
        sequences[user] = sequences[user][:-1]
    parts = [
        _examples("train", train.user_ids, sequences, catalog),
        _examples("valid", [train.user_ids[user] for user in chosen], held_out, catalog),
    ]
    return Catalog(catalog.items, pa.concat_tables(parts), catalog.source)


def _examples(split: str, user_ids: Sequence[str], sequences: Sequence[np.ndarray], catalog: Catalog) -> pa.Table:
    """Examples as split.parquet holds them; the last item of each sequence is the target."""
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
