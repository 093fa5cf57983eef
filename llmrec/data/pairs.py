"""Interactions as numbers, one for each pair of a user and an item, so that those of two catalogues can be compared."""

from __future__ import annotations

import numpy as np

from llmrec.data.catalog import Catalog


def numbered_pairs(catalog: Catalog, split: str, numbered: Catalog, users: dict[str, int]) -> np.ndarray:
    """Number the interactions of a split: all of the training examples, the targets of the held-out ones.

    Args:
        catalog: Has the interactions.
        split: train, valid or test.
        numbered: Numbers the items; those that it lacks are left out.
        users: Numbers the users by their user_id; new ones are added.

    Returns:
        int64 numbers, of as many interactions as there are; a user's interactions of a held-out split are in their
        order.
    """
    examples = catalog.examples(split)
    user = np.array([users.setdefault(user_id, len(users)) for user_id in examples.user_ids], dtype=np.int64)
    row_of = numbered.row_of.rows(catalog.item_ids)
    who, what = user, row_of[examples.targets]
    if split == "train":
        who = np.concatenate([np.repeat(user, np.diff(examples.offsets)), who])
        what = np.concatenate([row_of[examples.values], what])
    return (who * numbered.num_items + what)[what >= 0]
