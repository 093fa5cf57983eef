"""Baselines that cost nothing and are often not beaten: popularity, repeat, first-order Markov, ItemKNN.

The trained ones, which cost minutes, are in `llmrec.baselines`; `llmrec.baselines.by_name` makes any of them.

Those here see training sequences only (`Catalog.train`) and score the items on which they have an opinion; the
remaining slots are filled by popularity, so every baseline ranks the whole catalogue. Equal scores are ordered by
popularity and then by item row: rows are shuffled when the catalogue is prepared, so that order knows nothing of the
target. Each position is a tie group of its own.

Shapes: B rows, N items, U users, k places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import sparse

from llmrec.data.catalog import Catalog
from llmrec.evaluation.ranking import UNFILLED, Ranking

BATCH = 512  # rows scored at once; bounds memory where ItemKNN has an opinion on many items


class Baseline(Protocol):
    """What every baseline does; `Popularity.rank` says what it takes and returns."""

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking: ...


class Popularity:
    """Items by how often they were consumed in training; the same list for everyone.

    The base of the others: they add `opinion`, and inherit the filling, the exclusion and the order of ties.

    Args:
        catalog: Whose training sequences are counted.
    """

    def __init__(self, catalog: Catalog):
        self.users, self.items, _ = _flat(catalog.train.sequences())  # one entry per training interaction
        self.count = catalog.training_counts  # (N,)
        self.order = np.lexsort((np.arange(len(self.count)), -self.count))  # (N,) most popular first

    def opinion(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) positive scores of the items that go before popularity."""
        return sparse.csr_array((len(histories), len(self.count)))

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """The k best items of each history.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Places to fill.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k). Scores of items that popularity filled are their share of all interactions minus
            one, below every opinion.
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
        opinion = self.opinion(histories).tocoo()
        # Of the popular items, those that are excluded or have an opinion drop out: as many more are needed.
        popular = self.order[: k + max(map(len, exclude), default=0)]
        rows = np.concatenate([opinion.row, np.repeat(np.arange(len(histories)), len(popular))]).astype(np.int64)
        found = np.concatenate([opinion.col, np.tile(popular, len(histories))]).astype(np.int64)
        share = self.count / max(self.count.sum(), 1)
        values = np.concatenate([opinion.data, np.tile(share[popular] - 1, len(histories))])
        blocked_rows, blocked_items, _ = _flat(exclude)
        allowed = ~np.isin(rows * num_items + found, blocked_rows * num_items + blocked_items)
        rows, found, values = rows[allowed], found[allowed], values[allowed]
        _, once = np.unique(
            rows * num_items + found, return_index=True
        )  # the first, so an opinion goes before its fill
        rows, found, values = rows[once], found[once], values[once]
        best = np.lexsort((found, -self.count[found], -values, rows))
        place = _place(rows[best])
        best, place = best[place < k], place[place < k]
        items[rows[best], place], scores[rows[best], place] = found[best], values[best]


class Repeat(Popularity):
    """The user's own history, most frequent first and latest first among equals, then the popular items.

    Source: GP-TopFreq of Li et al. (arXiv:2109.14233); ordering its ties by recency is ours.
    """

    def opinion(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        rows, items, age = _flat(histories)
        # The powers of two of one history sum to less than 1, so they only order items of equal frequency.
        return _matrix(rows, items, 1 + 0.5 ** (age + 1.0), (len(histories), len(self.count)))


class Markov(Popularity):
    """Items that followed the user's last item in training, by their share of its transitions.

    Smoothed towards popularity with vanishing weight: a single transition outweighs any popularity, which orders equal
    shares and the items that never followed.

    Source: the first-order chain of FPMC (Rendle et al., WWW 2010), counted instead of factorised.
    """

    def __init__(self, catalog: Catalog):
        super().__init__(catalog)
        follows = self.users[1:] == self.users[:-1]
        before, after = self.items[:-1][follows], self.items[1:][follows]
        share = 1 / np.bincount(before, minlength=len(self.count))[before]
        self.transitions = _matrix(before, after, share, (len(self.count), len(self.count)))  # (N, N)

    def opinion(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        rows, items, age = _flat(histories)
        last = age == 0
        return _matrix(rows, items, last, (len(histories), len(self.count))) @ self.transitions


class ItemKNN(Popularity):
    """Items whose training users overlap with those of the history: cosine similarity, summed with recency decay.

    score(j) = sum over history items i of DECAY^age(i) * n_ij / (sqrt(n_i n_j) + SHRINK), where age 0 is the last item,
    n counts distinct users and each i speaks for its NEIGHBOURS most similar j.

    Source: Sarwar et al., Item-based collaborative filtering (WWW 2001), with the shrink term of Ferrari Dacrema et al.
    (arXiv:1907.06902).
    """

    # Swept on validation ndcg@10 with seen items excluded, 4,000 rows of MovieTweetings and of Beauty 2014: DECAY
    # .3 … .9 and SHRINK 0 … 100. From (.8, 0) to (.5, 20): .1220 -> .1316 and .0482 -> .0582.
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

    def opinion(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        rows, items, age = _flat(histories)
        return _matrix(rows, items, self.DECAY**age, (len(histories), len(self.count))) @ self.similarity


COUNTED: dict[str, type[Popularity]] = {
    "popularity": Popularity,
    "repeat": Repeat,
    "markov": Markov,
    "item_knn": ItemKNN,
}


def _flat(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of ragged lists of item rows: which list, the item row, and how many entries of its list follow it."""
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    rows = np.repeat(np.arange(len(lists)), lengths)
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())
    return rows, np.concatenate([np.empty(0, np.int64), *lists]), age


def _matrix(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Sparse matrix of `shape`; values of the same place are added."""
    return sparse.coo_array((np.asarray(values, dtype=np.float64), (rows, cols)), shape=shape).tocsr()


def _place(sorted_rows: np.ndarray) -> np.ndarray:
    """0-based place of each entry among the entries of its row, given ascending rows."""
    return np.arange(len(sorted_rows)) - np.searchsorted(sorted_rows, sorted_rows)
