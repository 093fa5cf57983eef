"""Exact ranking beside the beam's, on some of the rows: what the width of the beam costs.

A beam as wide as the catalogue drops no prefix, so that every SID is scored. What a narrower one finds has the same
scores; it can only miss items, and an item among the exact first k that it reached is among its own first k.

Shapes: n rows, k the largest cut-off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmrec.evaluation.metrics import Position, ndcg, recall
from llmrec.evaluation.protocol import COLUMNS, Outcome
from llmrec.evaluation.ranking import UNFILLED
from llmrec.runtime.manifest import JsonObject

EXACT = "exact"


def draw_rows(num_rows: int, wanted: int, seed: int) -> np.ndarray:
    """Ascending positions of `wanted` of the rows, or of all of them where there are fewer."""
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:wanted])


def beside(exact: Outcome, beam: Outcome, drawn: np.ndarray, cutoffs: list[int]) -> JsonObject:
    """Both rankings of the same rows, and how much of the exact one the beam found.

    Args:
        exact: Of the n drawn rows.
        beam: Of all rows.
        drawn: (n,) positions of the former among the latter.
        cutoffs: The k of recall@k, ndcg@k and found@k.

    Returns:
        exact and beam: metric -> value each; found: found@k -> share of the exact first k items.
    """
    ascending, of_drawn = sorted(cutoffs), Position(*(of_all[drawn] for of_all in beam.position))
    return {
        EXACT: _accuracy(exact.position, ascending),
        "beam": _accuracy(of_drawn, ascending),
        "found": {f"found@{k}": found(exact.items[:, :k], beam.items[drawn, :k]) for k in ascending},
    }


def _accuracy(position: Position, cutoffs: list[int]) -> dict[str, float]:
    return {f"{metric.__name__}@{k}": float(metric(position, k).mean()) for metric in (recall, ndcg) for k in cutoffs}


def found(exact: np.ndarray, beam: np.ndarray) -> float:
    """Share of the items of one ranking that are in the same row of another; both (n, k), unfilled slots apart."""
    is_found = (exact[:, :, None] == beam[:, None, :]).any(axis=2) & (exact != UNFILLED)
    return float(is_found.sum() / max(1, (exact != UNFILLED).sum()))


def lines(measured: JsonObject) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table on the terminal and in report.html; of metrics.json's `exact`."""
    names = [*measured[COLUMNS[0]][EXACT], *measured[COLUMNS[0]]["found"]]
    rows = []
    for column in COLUMNS:
        found = measured[column]["found"]
        rows.append([f"{column}, {EXACT}", *measured[column][EXACT].values(), *(1.0 for _ in found)])
        rows.append([f"{column}, beam", *measured[column]["beam"].values(), *found.values()])
    return ["ranking", *names], rows
