"""Baselines that are counted in seconds and often hard to beat: popularity, repeat, first-order Markov, ItemKNN.

The trained ones are in the other files of this package; `llmrec.baselines.by_name` makes any of them.

They read training sequences only (`Catalog.train`). Each scores some of the items; popularity fills the remaining
places, so that every baseline ranks the whole catalogue. Equal scores are ordered by popularity and then by item row.
Items are shuffled when the catalogue is prepared, so their order says nothing about the target. Each place is a tie
group of its own.

Shapes: B histories, N items, U users, k places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import sparse

from llmrec.configs.evaluate import COUNTED
from llmrec.data.catalog import Catalog
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.ranking import UNFILLED, Ranking

BATCH = 512  # histories ranked at once; bounds the memory of ItemKNN, which scores many items


class Baseline(Protocol):
    """A fitted baseline."""

    @property
    def log(self) -> Sequence[Epoch]:
        """One entry per epoch of training; empty for a counted baseline."""

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items for each history; arguments and result as in `Popularity.rank`."""


class Popularity:
    """Items by their number of training interactions; the same list for everyone.

    It is the base class of the others, which override `scores` and inherit filling, exclusion and the order of ties.

    Args:
        catalog: Catalogue whose training sequences are counted.
    """

    log: Sequence[Epoch] = ()

    def __init__(self, catalog: Catalog):
        self.users, self.items, _ = _flat(catalog.train.sequences())  # one entry per training interaction
        self.count = catalog.training_counts  # (N,)
        self.order = np.lexsort((np.arange(len(self.count)), -self.count))  # (N,) most popular first

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) positive scores of the items that rank before the popular ones."""
        return sparse.csr_array((len(histories), len(self.count)))

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items for each history.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Number of places.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k). An item that popularity filled in has its share of all interactions minus one as
            its score, which is below every score of `scores`.
        """
        exclude = exclude if exclude is not None else [np.empty(0, np.int64)] * len(histories)
        items, scores = np.full((len(histories), k), UNFILLED), np.full((len(histories), k), -np.inf)
        for first in range(0, len(histories), BATCH):
            part = slice(first, first + BATCH)
            self._rank_batch(histories[part], exclude[part], items[part], scores[part])
        return Ranking(items, np.broadcast_to(np.arange(k), items.shape), scores)

    def _rank_batch(
        self, histories: Sequence[np.ndarray], exclude: Sequence[np.ndarray], items: np.ndarray, scores: np.ndarray
    ) -> None:
        """Fill `items` and `scores`, both (B, k)."""
        num_items, k = len(self.count), items.shape[1]
        scored = self.scores(histories).tocoo()
        # Popular items that are excluded or already scored are dropped below, so more than k are needed.
        popular = self.order[: k + max(map(len, exclude), default=0)]
        owner = np.concatenate([scored.row, np.repeat(np.arange(len(histories)), len(popular))]).astype(np.int64)
        item = np.concatenate([scored.col, np.tile(popular, len(histories))]).astype(np.int64)
        share = self.count / max(self.count.sum(), 1)
        values = np.concatenate([scored.data, np.tile(share[popular] - 1, len(histories))])
        blocked_owner, blocked_item, _ = _flat(exclude)
        allowed = ~np.isin(owner * num_items + item, blocked_owner * num_items + blocked_item)
        owner, item, values = owner[allowed], item[allowed], values[allowed]
        # The first entry of each pair is kept, so a score takes precedence over popularity.
        _, once = np.unique(owner * num_items + item, return_index=True)
        owner, item, values = owner[once], item[once], values[once]
        best = np.lexsort((item, -self.count[item], -values, owner))
        place = _place(owner[best])
        best, place = best[place < k], place[place < k]
        items[owner[best], place], scores[owner[best], place] = item[best], values[best]


class Repeat(Popularity):
    """The user's own items, most frequent first and latest first among equals, then the popular items.

    Source: GP-TopFreq of Li et al. (arXiv:2109.14233); ordering its ties by recency is ours.
    """

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) frequency of each item in the history, plus less than 1 for recency."""
        owner, items, age = _flat(histories)
        # The powers of two of one history sum to less than 1, so they only order items of equal frequency.
        return _matrix(owner, items, 1 + 0.5 ** (age + 1.0), (len(histories), len(self.count)))


class Markov(Popularity):
    """Items that followed the user's last item in training, by their share of its transitions.

    A single transition outweighs any popularity; popularity only orders equal shares and the items that never followed.

    Source: the first-order chain of FPMC (Rendle et al., WWW 2010), counted instead of factorised.
    """

    def __init__(self, catalog: Catalog):
        super().__init__(catalog)
        follows = self.users[1:] == self.users[:-1]
        before, after = self.items[:-1][follows], self.items[1:][follows]
        share = 1 / np.bincount(before, minlength=len(self.count))[before]
        self.transitions = _matrix(before, after, share, (len(self.count), len(self.count)))  # (N, N)

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) share of each item among the transitions from the last item."""
        owner, items, age = _flat(histories)
        last = age == 0
        return _matrix(owner, items, last, (len(histories), len(self.count))) @ self.transitions


class ItemKNN(Popularity):
    """Items that share training users with the items of the history: cosine similarity, summed with recency decay.

    score(j) = sum over history items i of DECAY^age(i) * n_ij / (sqrt(n_i n_j) + SHRINK), n counts distinct users, the
    last item has age 0, and each i scores only its NEIGHBOURS most similar j.

    Source: Sarwar et al., Item-based collaborative filtering (WWW 2001), with the shrink term of Ferrari Dacrema et al.
    (arXiv:1907.06902).
    """

    # Swept on validation ndcg@10, seen items excluded, on 4,000 examples of MovieTweetings and of Beauty 2014:
    # DECAY .3 … .9 and SHRINK 0 … 100. From (.8, 0) to (.5, 20): .1220 -> .1316 and .0482 -> .0582.
    DECAY = 0.5
    SHRINK = 20.0
    NEIGHBOURS = 200
    BLOCK = 2048  # items whose similarities are computed at once; bounds memory before the neighbours are cut

    def __init__(self, catalog: Catalog):
        super().__init__(catalog)
        shape = (len(self.count), len(catalog.train))
        users = _matrix(self.items, self.users, np.ones(len(self.items)), shape)  # (N, U)
        users.data[:] = 1
        blocks = [self._similar(users, first) for first in range(0, len(self.count), self.BLOCK)]
        self.similarity = sparse.vstack(blocks, format="csr")  # (N, N)

    def _similar(self, users: sparse.csr_array, first: int) -> sparse.csr_array:
        """(BLOCK, N) similarities of the items from `first` on to their nearest neighbours."""
        norm = np.sqrt(users.sum(axis=1))
        block = users[first : first + self.BLOCK]
        both = (block @ users.T).tocoo()
        other = both.row + first != both.col
        row, col, count = both.row[other], both.col[other], both.data[other]
        cosine = count / (norm[row + first] * norm[col] + self.SHRINK)
        best = np.lexsort((col, -cosine, row))
        best = best[_place(row[best]) < self.NEIGHBOURS]
        return _matrix(row[best], col[best], cosine[best], both.shape)

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) similarities to the items of the history, summed with recency decay."""
        owner, items, age = _flat(histories)
        return _matrix(owner, items, self.DECAY**age, (len(histories), len(self.count))) @ self.similarity


COUNTED_BASELINES: dict[str, type[Popularity]] = dict(zip(COUNTED, (Popularity, Repeat, Markov, ItemKNN), strict=True))


def _flat(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of ragged lists of item rows: number of the list, item row, number of later entries in the list."""
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    owner = np.repeat(np.arange(len(lists)), lengths)
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())
    return owner, np.concatenate([np.empty(0, np.int64), *lists]), age


def _matrix(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Sparse matrix of `shape`; values at the same place are added."""
    return sparse.coo_array((np.asarray(values, dtype=np.float64), (rows, cols)), shape=shape).tocsr()


def _place(sorted_owners: np.ndarray) -> np.ndarray:
    """0-based place of each entry among the entries of its owner; owners ascend."""
    return np.arange(len(sorted_owners)) - np.searchsorted(sorted_owners, sorted_owners)
