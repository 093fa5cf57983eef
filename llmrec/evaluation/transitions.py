"""Transitions of the training sequences: which item followed which, at once or over one item in between.

A target is *seen* after the last item of its history if some training sequence has the two in this order, side by side.
It is *composable* if it is not seen, but an item follows the one and comes before the other in training. Models of item
ids are good at the first and models of semantic IDs at the second, so the two are told apart.

Nothing of size (N, N) is made: a matrix has an entry for each pair that occurs, and paths are looked for between the
asked items alone.

Shapes: n pairs, N items.

Source: memorisation and generalisation in How Well Does Generative Recommendation Generalize? (arXiv:2603.19809).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llmrec.data.examples import NONE, Examples

ENTRIES = 2**22  # neighbours that are compared at a time, which bounds the memory


class Transitions:
    """Pairs of items that stand side by side in a training sequence.

    Args:
        train: Training examples.
        num_items: Number of items of the catalogue.
        asked: Examples whose last items and targets are asked about; only their pairs are kept, which is a small part
            of those of a large catalogue. All pairs when left out.
    """

    def __init__(self, train: Examples, num_items: int, asked: Examples | None = None):
        owner, last = np.repeat(np.arange(len(train)), np.diff(train.offsets)), train.last_items()
        inside, at_end = owner[1:] == owner[:-1], last != NONE
        before = np.concatenate([train.values[:-1][inside], last[at_end]])
        after = np.concatenate([train.values[1:][inside], train.targets[at_end]])
        if asked is not None:
            is_before, is_after, asked_last = np.zeros(num_items, bool), np.zeros(num_items, bool), asked.last_items()
            is_before[asked_last[asked_last != NONE]] = is_after[asked.targets] = True
            is_kept = is_before[before] | is_after[after]
            before, after = before[is_kept], after[is_kept]
        self.num_items = num_items
        self.keys, self.times = np.unique(before * num_items + after, return_counts=True)
        places = self.keys // num_items, self.keys % num_items
        self.following = sparse.csr_array((np.ones(len(self.keys), bool), places), shape=(num_items, num_items))
        self.preceding = self.following.T.tocsr()

    def counts(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """(n,) int64, how often `after` (n,) follows `before` (n,) in training."""
        if len(self.keys) == 0:
            return np.zeros(len(before), np.int64)
        asked = before * self.num_items + after
        place = np.searchsorted(self.keys, asked).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == asked, self.times[place], 0)

    def are_composable(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """(n,) bool, whether some item follows `before` (n,) and comes before `after` (n,) in training."""
        sizes = np.diff(self.following.indptr)[before] + np.diff(self.preceding.indptr)[after]
        parts = np.cumsum(sizes) // ENTRIES
        found = np.zeros(len(before), dtype=bool)
        for part in np.split(np.arange(len(before)), np.flatnonzero(np.diff(parts)) + 1):
            between = self.following[before[part]].multiply(self.preceding[after[part]])
            found[part] = between.sum(axis=1) > 0
        return found
