"""Metrics that count items: one target per example, the full catalogue, and shared credit for ties.

A generative recommender ranks semantic IDs, and several items may share one. The items of a SID form a tie group, which
counts as in uniformly random order: a target that shares its SID with s - 1 other items earns the mean of the metric
over the s places of the group. `sid_recall` and `sid_ndcg` instead count the whole group as one hit. MiniOneRec's
published figures are of that kind; they grow with the number of shared SIDs.

Coverage, Gini, novelty and popularity percentile describe the first k slots, whatever the targets are.

With one target per example recall@k equals the hit rate HR@k, and the ideal DCG is 1.

METRICS and SLOT_METRICS are the only lists of names: an entry there is measured and written to metrics.json. SHOWN and
SLOT_METRICS are what the tables, the pages and `llmrec compare` show.

Shapes: B examples, R slots of a ranking, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmrec.evaluation.ranking import UNFILLED, Ranking

MISS = -1


class Position(NamedTuple):
    """The places of the targets of B examples.

    Attributes:
        start: (B,) int64 number of slots before the target's tie group; -1 if the target is absent.
        size: (B,) int64 number of items in the tie group; 1 if the target is absent.
        group: (B,) int64 rank of the target's SID; -1 if the target is absent.
    """

    start: np.ndarray
    size: np.ndarray
    group: np.ndarray


def target_position(ranking: Ranking, targets: np.ndarray) -> Position:
    """Find the tie group of each target.

    Args:
        ranking: Ranking of B examples.
        targets: (B,) item rows.
    """
    is_target = ranking.items == targets[:, None]  # (B, R)
    hit = is_target.any(axis=1)
    group = np.where(hit, np.take_along_axis(ranking.groups, is_target.argmax(axis=1)[:, None], axis=1)[:, 0], MISS)
    tied = (ranking.groups == group[:, None]) & (ranking.items != UNFILLED)  # (B, R)
    start = np.where(hit, tied.argmax(axis=1), MISS)
    return Position(start, np.where(hit, tied.sum(axis=1), 1), group)


def recall(position: Position, k: int) -> np.ndarray:
    """(B,) probability that the target is among the first k items."""
    return _shared_credit(position, np.ones(k))


def ndcg(position: Position, k: int) -> np.ndarray:
    """(B,) expected 1 / log2(rank + 1) of the target, 1-based, 0 beyond k."""
    return _shared_credit(position, 1 / np.log2(np.arange(k) + 2))


def mrr(position: Position, k: int) -> np.ndarray:
    """(B,) expected reciprocal rank of the target, 0 beyond k."""
    return _shared_credit(position, 1 / (np.arange(k) + 1))


def sid_recall(position: Position, k: int) -> np.ndarray:
    """(B,) 1 if the target's SID is among the first k SIDs, else 0; every item of the SID counts as a full hit.

    Source: the evaluation of MiniOneRec (arXiv:2510.24431), which compares SID strings.
    """
    return ((position.group >= 0) & (position.group < k)).astype(np.float64)


def sid_ndcg(position: Position, k: int) -> np.ndarray:
    """(B,) gain of the target's SID at its rank among the SIDs, 0 beyond k; every item of the SID counts in full."""
    return sid_recall(position, k) / np.log2(np.maximum(position.group, 0) + 2)


METRICS: dict[str, Callable[[Position, int], np.ndarray]] = {
    "recall": recall,
    "ndcg": ndcg,
    "mrr": mrr,
    "sid_recall": sid_recall,
    "sid_ndcg": sid_ndcg,
}
SHOWN = ("recall", "ndcg")  # in every table, difference, stratum and comparison
SHOWN_AT_LARGEST = ("mrr",)  # only in the first table, at the largest cut-off


def per_example(position: Position, cutoffs: list[int]) -> dict[str, np.ndarray]:
    """Every metric of every example: name@k -> (B,) in [0, 1], metric by metric, cut-offs ascending."""
    return {f"{name}@{k}": metric(position, k) for name, metric in METRICS.items() for k in sorted(cutoffs)}


def shown_names(cutoffs: list[int]) -> list[str]:
    """Columns of the first table."""
    return [f"{name}@{k}" for name in SHOWN for k in cutoffs] + [f"{name}@{max(cutoffs)}" for name in SHOWN_AT_LARGEST]


def unfilled(items: np.ndarray, k: int) -> float:
    """Share of the first k slots that hold no item; recall counts these slots as misses.

    Args:
        items: (B, R) item rows of a ranking; slots beyond R are unfilled.
        k: Number of slots that count.
    """
    return 1 - float((items[:, :k] != UNFILLED).sum()) / (len(items) * k)


def coverage(items: np.ndarray, k: int, num_items: int) -> float:
    """Share of the catalogue that is among the first k slots of at least one example.

    Args:
        items: (B, R) item rows of a ranking. Tied items count in the order in which the ranker lists them.
        k: Number of slots that count.
        num_items: Size of the catalogue.
    """
    shown = np.unique(items[:, :k])
    return float((shown != UNFILLED).sum()) / num_items


def gini(items: np.ndarray, k: int, num_items: int) -> float:
    """Inequality of how often items are shown: 0 if all are shown equally often, 1 - 1 / N if one item always is.

    Args:
        items: (B, R) item rows of a ranking.
        k: Number of slots that count; the result is 0 if none of them holds an item.
        num_items: Size of the catalogue; items that are never shown count too.

    Source: the Gini index of aggregate diversity, Fleder and Hosanagar (2009), Management Science 55(5).
    """
    shown = np.sort(np.bincount(_filled(items, k), minlength=num_items))
    weight = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weight @ shown) / (num_items * max(int(shown.sum()), 1))


def novelty(items: np.ndarray, k: int, training: np.ndarray) -> float:
    """Mean self-information of the shown items in bits, -log2 (c + 1) / (C + N); add-one keeps cold items finite.

    Args:
        items: (B, R) item rows of a ranking.
        k: Number of slots that count; the result is 0 if none of them holds an item.
        training: (N,) training interactions c of each item; C is their sum.

    Source: Vargas and Castells (2011), Rank and Relevance in Novelty and Diversity Metrics, without its discounts.
    """
    shown = training[_filled(items, k)]
    return _mean(-np.log2((shown + 1) / (training.sum() + len(training))))


def popularity_percentile(items: np.ndarray, k: int, training: np.ndarray) -> float:
    """Mean percentile of the shown items by training interactions: 0 the fewest, 1 the most, .5 for a uniform draw.

    Items of equal count share the middle of their places.

    Args:
        items: (B, R) item rows of a ranking.
        k: Number of slots that count; the result is 0 if none of them holds an item.
        training: (N,) training interactions of each item.
    """
    ordered = np.sort(training)
    below, upto = (np.searchsorted(ordered, training[_filled(items, k)], side=side) for side in ("left", "right"))
    return _mean((below + upto) / (2 * len(training)))


SLOT_METRICS: dict[str, Callable[[np.ndarray, int, np.ndarray], float]] = {
    "coverage": lambda items, k, training: coverage(items, k, len(training)),
    "gini": lambda items, k, training: gini(items, k, len(training)),
    "novelty": novelty,
    "popularity_percentile": popularity_percentile,
}


def per_slots(items: np.ndarray, cutoffs: list[int], training: np.ndarray) -> dict[str, float]:
    """Every metric of the shown items: name@k -> value.

    Args:
        items: (B, R) item rows of a ranking.
        cutoffs: Every k.
        training: (N,) training interactions of each item.
    """
    return {f"{name}@{k}": metric(items, k, training) for name, metric in SLOT_METRICS.items() for k in sorted(cutoffs)}


def invalid_rate(items: np.ndarray, invalid: np.ndarray) -> float:
    """Share of the answers that are no item of the catalogue; 0 under trie-constrained decoding.

    Args:
        items: (B, R) item rows of a ranking.
        invalid: (B,) number of answers of each example that are no item.
    """
    wrong, right = int(invalid.sum()), int((items != UNFILLED).sum())
    return wrong / max(wrong + right, 1)


def _filled(items: np.ndarray, k: int) -> np.ndarray:
    """Item rows in the first k slots, one entry per filled slot."""
    slots = items[:, :k]
    return slots[slots != UNFILLED]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _shared_credit(position: Position, gains: np.ndarray) -> np.ndarray:
    """(B,) mean of the gains (k,) over the places of the target's tie group; the gain is 0 beyond k."""
    cumulative, k = np.concatenate([[0.0], np.cumsum(gains)]), len(gains)
    start, size, _ = position
    credit = cumulative[np.clip(start + size, 0, k)] - cumulative[np.clip(start, 0, k)]
    return np.where(start == MISS, 0.0, credit / size)
