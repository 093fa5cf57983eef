"""A part of a catalogue: some of its items, with the histories and examples that they leave."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from llmrec.data import columns
from llmrec.data.catalog import SPLITS, Catalog
from llmrec.data.examples import Examples


def part_of(catalog: Catalog, is_kept: np.ndarray) -> Catalog:
    """Leave out items: from every history, and with the held-out examples whose target they are.

    Args:
        catalog: The whole.
        is_kept: (num_items,) bool, items that stay, in their order.

    Returns:
        A catalogue of the same directory. The last item that is left of a training sequence is its target.

    >>> items = pa.table({"item_id": ["a", "b", "c"], "title": ["Saw", "Jaws", "Up"]})
    >>> users, splits = ["u", "u"], ["train", "test"]
    >>> split = {"user_id": users, "split": splits, "history": [["c", "a"], ["a"]], "target": ["b", "c"]}
    >>> part = part_of(Catalog(items, pa.table(split)), np.array([True, False, True]))
    >>> part.item_ids, part.train.sequence(0).tolist(), part.examples("test").targets.tolist()
    (['a', 'c'], [1, 0], [1])
    """
    item_ids = pa.array(catalog.item_ids, pa.string())
    tables = []
    for split in SPLITS:
        examples = catalog.examples(split)
        left = _of_training(examples, is_kept) if split == "train" else _held_out(examples, is_kept)
        data = {
            columns.USER_ID: pa.array(left.user_ids, pa.string()),
            columns.SPLIT: pa.array([split] * len(left), pa.string()),
            columns.HISTORY: pa.LargeListArray.from_arrays(left.offsets, item_ids.take(pa.array(left.values))),
            columns.TARGET: item_ids.take(pa.array(left.targets)),
        }
        tables.append(pa.table(data))
    return Catalog(catalog.items.filter(pa.array(is_kept)), pa.concat_tables(tables), catalog.source)


def _held_out(examples: Examples, is_kept: np.ndarray) -> Examples:
    known = examples.take(np.flatnonzero(is_kept[examples.targets]))
    values, offsets = _filtered(known.values, known.offsets, is_kept)
    return Examples(known.user_ids, values, offsets, known.targets)


def _of_training(examples: Examples, is_kept: np.ndarray) -> Examples:
    whole = np.insert(examples.values, examples.offsets[1:], examples.targets)
    values, offsets = _filtered(whole, examples.offsets + np.arange(len(examples) + 1), is_kept)
    is_left = np.diff(offsets) > 0
    last = offsets[1:][is_left] - 1
    users = [user for user, left in zip(examples.user_ids, is_left, strict=True) if left]
    lengths = np.diff(offsets)[is_left] - 1
    return Examples(users, np.delete(values, last), np.concatenate([[0], np.cumsum(lengths)]), values[last])


def _filtered(values: np.ndarray, offsets: np.ndarray, is_kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of items that stay, with the offsets of the same lists."""
    stays = is_kept[values]
    return values[stays], np.concatenate([[0], np.cumsum(stays)])[offsets]
