"""Learning curves: NDCG on the valid examples after so many trained items and so many seconds.

The LLM is validated during `llmrec sft` if `eval_steps` is set; trained baselines are validated after every epoch. Both
count every target as often as it was trained on, and the wall time so far, validation included. So the curves share
their axes, and the page can show how much training each system needed to come near its own best.

Source: ReSID (arXiv:2602.02338) asks how many more epochs than SASRec a generator of semantic IDs needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmrec.runtime.manifest import JsonObject

CUTOFF = 10
# Keys of training_log.json; the Trainer of transformers requires that the metric it compares starts with `eval_`.
NDCG, RECALL = f"eval_ndcg@{CUTOFF}", f"eval_recall@{CUTOFF}"
ITEMS_NDCG = f"eval_items_ndcg@{CUTOFF}"  # by item rows, if the model has them
SUPERVISED, SECONDS, VALIDATION_SECONDS = "eval_supervised", "eval_seconds", "eval_runtime"
NEAR = 0.9  # share of the best value

Point = dict[str, float]  # supervised, seconds, ndcg


class Epoch(NamedTuple):
    """One line of the log of a trained baseline.

    Attributes:
        loss: Mean over the supervised places.
        quality: Result of the caller's quality function after the epoch; larger is better.
        supervised: Targets trained on so far, counted as often as they were trained on.
        seconds: Wall time so far, validation included.
    """

    loss: float
    quality: float
    supervised: int
    seconds: float


def points_of_log(log: Sequence[JsonObject], key: str = NDCG) -> list[Point]:
    """The validations in a training_log.json, in their order; empty if there are none.

    Args:
        log: Entries of the log.
        key: NDCG or ITEMS_NDCG.
    """
    return [{"supervised": e[SUPERVISED], "seconds": e[SECONDS], "ndcg": e[key]} for e in log if key in e]


def points_of_epochs(log: Sequence[Epoch]) -> list[Point]:
    """The epochs of a trained baseline whose quality is ndcg."""
    return [{"supervised": e.supervised, "seconds": e.seconds, "ndcg": e.quality} for e in log]


def learning(points: Sequence[Point]) -> JsonObject | None:
    """A learning curve with its best value and the first point that comes near it.

    Args:
        points: Ascending in supervised and seconds.

    Returns:
        curve: the points; best: the largest ndcg; near: the first point with NEAR times the best, None if that
        is 0. None instead of all three if there are no points.
    """
    if not points:
        return None
    best = max(point["ndcg"] for point in points)
    near = reach(points, NEAR * best) if best > 0 else None
    return {"best": best, "near": near, "curve": list(points)}


def reach(points: Sequence[Point], level: float) -> Point | None:
    """The first point whose ndcg is `level` or more; None if there is none."""
    return next((point for point in points if point["ndcg"] >= level), None)
