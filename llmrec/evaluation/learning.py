"""Learning curves: how good a system was on the valid rows after how many items and seconds of training.

Ours is judged by `llmrec sft` where `eval_steps` asks for it, a trained baseline after every epoch. Both count the
items that were targets so far, as often as they were, and the wall time so far, judging included. So the curves can be
laid beside each other, and what each system needed to come near its own best.

Source: the question how many more epochs than SASRec a generator of semantic IDs needs is ReSID's (arXiv:2602.02338).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrec.runtime.manifest import JsonObject

CUTOFF = 10
# Keys of training_log.json; the Trainer of transformers wants the metric that it compares to begin with `eval_`.
NDCG, RECALL = f"eval_ndcg@{CUTOFF}", f"eval_recall@{CUTOFF}"
SUPERVISED, SECONDS, JUDGING = "eval_supervised", "eval_seconds", "eval_runtime"
NEAR = 0.9  # of the best value

Point = dict[str, float]  # supervised, seconds, ndcg


def points_of_log(log: Sequence[JsonObject]) -> list[Point]:
    """The evaluations in a training_log.json, in their order; empty where there were none."""
    found = [entry for entry in log if NDCG in entry]
    return [{"supervised": e[SUPERVISED], "seconds": e[SECONDS], "ndcg": e[NDCG]} for e in found]


def points_of_epochs(log: Sequence[Any]) -> list[Point]:
    """The epochs of a trained baseline, `llmrec.baselines.trainer.Epoch` each."""
    return [{"supervised": e.supervised, "seconds": e.seconds, "ndcg": e.quality} for e in log]


def learning(points: Sequence[Point]) -> JsonObject | None:
    """A curve and what it took to come near its best.

    Args:
        points: Ascending in supervised and seconds.

    Returns:
        curve: the points; best: the largest ndcg; near: the first point with NEAR of it. None without a point, and with
        `near` None where nothing but 0 was reached.
    """
    if not points:
        return None
    best = max(point["ndcg"] for point in points)
    near = next((point for point in points if point["ndcg"] >= NEAR * best), None) if best > 0 else None
    return {"best": best, "near": near, "curve": list(points)}
