"""Metrics that count items: recall, NDCG and MRR at k with one target per row, full catalogue, shared credit for ties.

A generative recommender ranks semantic IDs, and several items may own one. The items of a SID form a tie group that is
taken as in uniformly random order: a target that shares its SID with s - 1 other items earns the mean of the metric
over the s places of the group. Recall@k at the SID level, which counts the whole group as a hit, stands beside it:
MiniOneRec's published figures are of that kind and are the larger, the more SIDs are shared.

Beyond accuracy: coverage, Gini, novelty and popularity percentile read the first k slots, whatever the targets are.

With one target per row recall@k equals the hit rate HR@k, and the ideal DCG is 1.

Shapes: B rows, R slots of a ranking, N items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmrec.evaluation.ranking import UNFILLED, Ranking

MISS = -1


class Position(NamedTuple):
    """Where the targets of B rows stand.

    Attributes:
        start: (B,) int64 slots before the target's group; -1 where the target is absent.
        size: (B,) int64 items in the group; 1 where the target is absent.
        group: (B,) int64 rank of the target's SID; -1 where the target is absent.
    """

    start: np.ndarray
    size: np.ndarray
    group: np.ndarray


def target_position(ranking: Ranking, targets: np.ndarray) -> Position:
    """Tie group of each row's target.

    Args:
        ranking: Of B rows.
        targets: (B,) item rows.
    """
    found = ranking.items == targets[:, None]  # (B, R)
    hit = found.any(axis=1)
    group = np.where(hit, np.take_along_axis(ranking.groups, found.argmax(axis=1)[:, None], axis=1)[:, 0], MISS)
    tied = (ranking.groups == group[:, None]) & (ranking.items != UNFILLED)  # (B, R)
    start = np.where(hit, tied.argmax(axis=1), MISS)
    return Position(start, np.where(hit, tied.sum(axis=1), 1), group)


def recall(position: Position, k: int) -> np.ndarray:
    """(B,) chance that the target is among the first k items."""
    return _shared_credit(position, np.ones(k))


def ndcg(position: Position, k: int) -> np.ndarray:
    """(B,) expected 1 / log2(rank + 1) of the target, 1-based, 0 beyond k."""
    return _shared_credit(position, 1 / np.log2(np.arange(k) + 2))


def mrr(position: Position, k: int) -> np.ndarray:
    """(B,) expected reciprocal rank of the target, 0 beyond k."""
    return _shared_credit(position, 1 / (np.arange(k) + 1))


def sid_recall(position: Position, k: int) -> np.ndarray:
    """(B,) whether the target's SID is among the first k SIDs; every item of the SID counts as a full hit.

    Source: the evaluation of MiniOneRec (arXiv:2510.24431), which compares SID strings.
    """
    return ((position.group >= 0) & (position.group < k)).astype(np.float64)


def per_row(position: Position, cutoffs: list[int]) -> dict[str, np.ndarray]:
    """Every metric of every row: name -> (B,) in [0, 1], metric by metric, cut-offs ascending."""
    metrics = {"recall": recall, "ndcg": ndcg, "mrr": mrr, "sid_recall": sid_recall}
    return {f"{name}@{k}": metric(position, k) for name, metric in metrics.items() for k in sorted(cutoffs)}


def unfilled(items: np.ndarray, k: int) -> float:
    """Share of the first k slots that hold no item; recall counts them as misses.

    Args:
        items: (B, R) item rows of a ranking; slots beyond R are unfilled.
    """
    return 1 - float((items[:, :k] != UNFILLED).sum()) / (len(items) * k)


def coverage(items: np.ndarray, k: int, num_items: int) -> float:
    """Share of the catalogue that is among the first k slots of at least one row.

    Args:
        items: (B, R) item rows of a ranking. Tied items count in the order in which the ranker lists them.
        num_items: Size of the catalogue.
    """
    shown = np.unique(items[:, :k])
    return float((shown != UNFILLED).sum()) / num_items


def gini(items: np.ndarray, k: int, num_items: int) -> float:
    """Inequality of how often the items of the catalogue are shown: 0 all alike, 1 - 1 / N one item only.

    Args:
        items: (B, R) item rows of a ranking.
        k: Slots that count; 0 is returned where none of them holds an item.
        num_items: Size of the catalogue; items that are never shown count too.

    Source: the Gini index of aggregate diversity, Fleder and Hosanagar (2009), Management Science 55(5).
    """
    shown = np.sort(np.bincount(_filled(items, k), minlength=num_items))
    weight = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weight @ shown) / (num_items * max(int(shown.sum()), 1))


def novelty(items: np.ndarray, k: int, training: np.ndarray) -> float:
    """Mean self-information of what is shown, -log2 (c + 1) / (C + N) bits; add-one, so that cold items have one.

    Args:
        items: (B, R) item rows of a ranking.
        k: Slots that count; 0 is returned where none of them holds an item.
        training: (N,) training interactions c of each item, C together.

    Source: Vargas and Castells (2011), Rank and Relevance in Novelty and Diversity Metrics, without its discounts.
    """
    bits = -np.log2((training + 1) / (training.sum() + len(training)))
    return _mean(bits[_filled(items, k)])


def popularity_percentile(items: np.ndarray, k: int, training: np.ndarray) -> float:
    """Mean place of what is shown among the N items by training interactions: 0 least, 1 most, .5 a uniform draw.

    Items of equal count stand together at the middle of their places.

    Args:
        items: (B, R) item rows of a ranking.
        k: Slots that count; 0 is returned where none of them holds an item.
        training: (N,) training interactions of each item.
    """
    ordered = np.sort(training)
    below, upto = (np.searchsorted(ordered, training, side=side) for side in ("left", "right"))
    return _mean(((below + upto) / (2 * len(training)))[_filled(items, k)])


def invalid_rate(items: np.ndarray, invalid: np.ndarray) -> float:
    """Share of the answers that were no item of the catalogue; 0 under trie-constrained decoding.

    Args:
        items: (B, R) item rows of a ranking.
        invalid: (B,) number of answers of each row that were no item.
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
    """(B,) mean of `gains` (k,), 0 from k on, over the places that the target's tie group takes."""
    cumulative, k = np.concatenate([[0.0], np.cumsum(gains)]), len(gains)
    start, size, _ = position
    credit = cumulative[np.clip(start + size, 0, k)] - cumulative[np.clip(start, 0, k)]
    return np.where(start == MISS, 0.0, credit / size)
