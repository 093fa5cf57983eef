"""From requests in item rows to the best items of each user: by the ranker, or by popularity without a history.

Places may be kept for new items.

Shapes: B histories, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.requests import ItemRequests, whole_number
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.evaluation.ranking import UNFILLED
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.table import SidTable


class BestItems(NamedTuple):
    """(n,) item rows and scores of one user, best first."""

    rows: np.ndarray
    scores: np.ndarray


class _Pair(NamedTuple):
    item_ids: list[list[str]]
    scores: list[list[float]]


class Answers(_Pair):
    """Answers to B users: a pair of item_ids and scores, with what was not answered as it was asked.

    Attributes:
        item_ids: B lists of item_ids, best first.
        scores: B lists of their scores.
        is_fallback: B bools, True for a user without a known item, who was given the popular items.
        unknown: B lists of the item_ids of each history that were left out as unknown.
        unknown_filters: Those of `exclude` and `allow`, each once.

    >>> answers = Answers([["red"]], [[-0.5]])
    >>> answers.is_fallback = [True]
    >>> item_ids, scores = answers
    >>> item_ids, answers.is_fallback
    ([['red']], [True])
    """

    is_fallback: list[bool]
    unknown: list[list[str]]
    unknown_filters: list[str]

    @classmethod
    def of(cls, best: Sequence[BestItems], asked: ItemRequests, table: SidTable) -> Answers:
        """Name the best items of each user."""
        item_ids = [table.item_ids.of(items.rows) for items in best]
        answers = cls(item_ids, [items.scores.tolist() for items in best])
        answers.is_fallback = [not len(rows) for rows in asked.histories]
        answers.unknown, answers.unknown_filters = asked.unknown, asked.unknown_filters
        return answers


@dataclass(frozen=True)
class AnswerSize:
    """Numbers of a request: items of each user, and how they are searched.

    Attributes:
        k: Number of items of each user.
        min_new: Least number of new items among them, if as many are allowed.
        num_beams: Beam width; the ranker's default if None.
        batch_size: Number of users ranked together.
    """

    k: int
    min_new: int
    num_beams: int | None
    batch_size: int

    @classmethod
    def read(cls, k: object, min_new: object, num_beams: object, batch_size: object) -> AnswerSize:
        """Check the numbers of a request.

        Raises:
            ValueError: If one is no whole number, or too small, or `min_new` is above `k`.
        """
        width = None if num_beams is None else whole_number("num_beams", num_beams, 0)
        size = cls(whole_number("k", k, 1), whole_number("min_new", min_new, 0), width,
                   whole_number("batch_size", batch_size, 1))  # fmt: skip
        if size.min_new > size.k:
            raise ValueError(f"min_new is {size.min_new}, more than k = {size.k}; give {size.k} or less.")
        return size


class Answerer:
    """Answers of a ranker, within the items that may be shown.

    Args:
        ranker: Ranks for users who have a history.
        record: Training interactions: they rank for users who have none, and tell which items are new.
        is_shown: (N,) bool, items that may be shown; all when left out.
    """

    def __init__(self, ranker: SidRanker, record: CatalogRecord | None, is_shown: np.ndarray | None):
        self.ranker, self.record = ranker, record
        self.is_shown = np.ones(ranker.table.num_items, bool) if is_shown is None else is_shown

    @cached_property
    def shown(self) -> AllowList | None:
        """Items that may be shown; None if all of them."""
        return None if self.is_shown.all() else AllowList(self.ranker.trie, np.flatnonzero(self.is_shown))

    @cached_property
    def is_new(self) -> np.ndarray:
        """(N,) bool, items that may be shown and have no training interactions."""
        return self.is_shown & (self.record.train_counts == 0 if self.record else False)

    @cached_property
    def new(self) -> AllowList:
        """Items that may be shown and have no training interactions."""
        return AllowList(self.ranker.trie, np.flatnonzero(self.is_new))

    def answer(self, asked: ItemRequests, size: AnswerSize) -> list[BestItems]:
        """Answer every user.

        Args:
            asked: Requests of B users.
            size: Number of items of each, and how they are searched.

        Returns:
            Best items of each user; fewer than k if fewer are allowed.

        Raises:
            ValueError: As `check` does.
        """
        return self.start(asked, size)()

    def check(self, asked: ItemRequests, size: AnswerSize) -> None:
        """Refuse what the checkpoint cannot answer.

        Args:
            asked: Requests of B users.
            size: Number of items of each, and how they are searched.

        Raises:
            ValueError: If a history is empty or `min_new` is positive, and there is no record; or `num_beams` is
                smaller than `k`.
        """
        self.ranker.check_beams(size.k, size.num_beams)
        if self.record is None and (size.min_new or not all(map(len, asked.histories))):
            empty = next((user for user, rows in enumerate(asked.histories) if not len(rows)), None)
            asked_for = f"min_new is {size.min_new}" if empty is None else f"History {empty} is empty"
            raise ValueError(
                f"{asked_for}, but the checkpoint does not tell how often items were trained on, because an earlier "
                "llmrec wrote it. Train again, or give every user at least one item, and no min_new."
            )

    def start(self, asked: ItemRequests, size: AnswerSize) -> Callable[[], list[BestItems]]:
        """Queue the first batch of users on the device, and return a function that waits for all answers.

        Args:
            asked: Requests of B users.
            size: Number of items of each, and how they are searched.

        Raises:
            ValueError: As `check` does.
        """
        self.check(asked, size)
        best = self._rank(asked, self._within(asked, self.is_shown, self.shown), size, size.k)
        if not size.min_new:
            return best
        new = self._rank(asked, self._within(asked, self.is_new, self.new), size, size.min_new)
        return lambda: [reserve(*both, self.is_new, size.k, size.min_new) for both in zip(best(), new(), strict=True)]

    def _within(
        self, asked: ItemRequests, is_permitted: np.ndarray, permitted: AllowList | None
    ) -> list[AllowList | None]:
        """Allow-lists of users, cut to permitted items that are not barred for all users.

        Each is resolved once, however many users were given it.
        """
        if len(asked.exclude_all):
            is_permitted = is_permitted.copy()
            is_permitted[asked.exclude_all] = False
            permitted = AllowList(self.ranker.trie, np.flatnonzero(is_permitted))
        distinct = {id(rows): rows for rows in asked.allow if rows is not None}
        resolved = {key: AllowList(self.ranker.trie, rows[is_permitted[rows]]) for key, rows in distinct.items()}
        return [permitted if rows is None else resolved[id(rows)] for rows in asked.allow]

    def _rank(
        self, asked: ItemRequests, allow: Sequence[AllowList | None], size: AnswerSize, k: int
    ) -> Callable[[], list[BestItems]]:
        """Queue users who have a history for the ranker, and give the others popular items."""
        found: dict[int, BestItems] = {}
        warm = [user for user, rows in enumerate(asked.histories) if len(rows)]
        parts = [warm[start : start + size.batch_size] for start in range(0, len(warm), size.batch_size)]
        rankings = self.ranker.rank_batches((_batch(asked, allow, part) for part in parts), k, size.num_beams)
        popular: dict[AllowList | None, np.ndarray] = {}
        for user, exclude in enumerate(asked.exclude):
            if not len(asked.histories[user]) and self.record is not None:
                if allow[user] not in popular:
                    popular[allow[user]] = _popular(self.record, allow[user])
                rows = popular[allow[user]][: k + len(exclude)]
                rows = rows[~np.isin(rows, exclude)][:k]
                found[user] = BestItems(rows, self.record.log_shares[rows])

        def wait() -> list[BestItems]:
            for part, ranking in zip(parts, rankings, strict=True):
                for user, items, scores in zip(part, ranking.items[:, :k], ranking.scores[:, :k], strict=True):
                    found[user] = BestItems(items[items != UNFILLED], scores[items != UNFILLED])
            return [found[user] for user in range(len(allow))]

        return wait


def _batch(
    asked: ItemRequests, allow: Sequence[AllowList | None], users: list[int]
) -> tuple[list[np.ndarray], list[np.ndarray] | None, list[AllowList | None] | None]:
    """Requests of some users as the ranker takes them; no filter where nobody has one."""
    exclude, allowed = [asked.exclude[user] for user in users], [allow[user] for user in users]
    return (
        [asked.histories[user] for user in users],
        exclude if any(map(len, exclude)) else None,
        None if all(one is None for one in allowed) else allowed,
    )


def _popular(record: CatalogRecord, allow: AllowList | None) -> np.ndarray:
    """Allowed item rows, most training interactions first."""
    order = record.by_popularity
    return order if allow is None else order[np.isin(order, allow.items)]


def reserve(best: BestItems, new: BestItems, is_new: np.ndarray, k: int, least: int) -> BestItems:
    """Let the best new items take the places of the last others, where there are too few of them.

    Args:
        best: Best items of a user, at most k.
        new: Best new items of the user, at most `least`.
        is_new: (N,) bool.
        k: Number of items.
        least: Number of new items that are wanted.

    Returns:
        The items, best first.

    >>> best, new = BestItems(np.array([0, 1, 2]), np.array([-1.0, -2, -3])), BestItems(np.array([4]), np.array([-9.0]))
    >>> reserve(best, new, np.array([False, False, False, False, True]), k=3, least=1)
    BestItems(rows=array([0, 1, 4]), scores=array([-1., -2., -9.]))
    """
    kept_new, kept_old = np.flatnonzero(is_new[best.rows]), np.flatnonzero(~is_new[best.rows])
    added = np.flatnonzero(~np.isin(new.rows, best.rows))[: max(0, least - len(kept_new))]
    kept_old = kept_old[: max(0, k - len(kept_new) - len(added))]
    kept = np.sort(np.concatenate([kept_new, kept_old]))
    rows = np.concatenate([best.rows[kept], new.rows[added]])
    scores = np.concatenate([best.scores[kept], new.scores[added]])
    order = np.argsort(-scores, kind="stable")
    return BestItems(rows[order], scores[order])
