"""Exact ranking of a sample of the examples, to measure what a narrow beam misses.

A beam as wide as the catalogue drops no prefix, so every SID is scored. A narrower beam computes the same scores. It
can only miss items, and an item of the exact first k that it reaches is among its own first k.

Shapes: n examples, k the largest cut-off.
"""

from __future__ import annotations

import numpy as np

from llmrec.evaluation.metrics import METRICS, SHOWN, Position
from llmrec.evaluation.protocol import COLUMNS, Outcome
from llmrec.evaluation.ranking import UNFILLED
from llmrec.runtime.manifest import JsonObject

EXACT = "exact"


def draw_examples(num_examples: int, wanted: int, seed: int) -> np.ndarray:
    """Ascending positions of `wanted` random examples, or of all if there are fewer."""
    return np.sort(np.random.default_rng(seed).permutation(num_examples)[:wanted])


def compare_with_beam(exact: Outcome, beam: Outcome, drawn: np.ndarray, cutoffs: list[int]) -> JsonObject:
    """Metrics of both rankings of the same examples, and how much of the exact one the beam found.

    Args:
        exact: Outcome of the n drawn examples.
        beam: Outcome of all examples.
        drawn: (n,) positions of the drawn examples among all.
        cutoffs: Every k of recall@k, ndcg@k and found@k.

    Returns:
        exact and beam: metric -> value; found: found@k -> share of the exact first k items that the beam found.
    """
    ascending, of_drawn = sorted(cutoffs), Position(*(of_all[drawn] for of_all in beam.position))
    return {
        EXACT: _accuracy(exact.position, ascending),
        "beam": _accuracy(of_drawn, ascending),
        "found": {f"found@{k}": share_found(exact.items[:, :k], beam.items[drawn, :k]) for k in ascending},
    }


def _accuracy(position: Position, cutoffs: list[int]) -> dict[str, float]:
    return {f"{name}@{k}": float(METRICS[name](position, k).mean()) for name in SHOWN for k in cutoffs}


def share_found(exact: np.ndarray, beam: np.ndarray) -> float:
    """Share of the items of each line of `exact` that the same line of `beam` holds; both (n, k), -1 is unfilled."""
    is_found = (exact[:, :, None] == beam[:, None, :]).any(axis=2) & (exact != UNFILLED)
    return float(is_found.sum() / max(1, (exact != UNFILLED).sum()))


def lines(measured: JsonObject) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Header, and name and values of each line, of the table on the terminal and in report.html.

    Args:
        measured: `exact` of metrics.json.
    """
    names = [*measured[COLUMNS[0]][EXACT], *measured[COLUMNS[0]]["found"]]
    table = []
    for column in COLUMNS:
        shares = measured[column]["found"]
        table.append((f"{column}, {EXACT}", [*measured[column][EXACT].values(), *(1.0 for _ in shares)]))
        table.append((f"{column}, beam", [*measured[column]["beam"].values(), *shares.values()]))
    return ["ranking", *names], table
