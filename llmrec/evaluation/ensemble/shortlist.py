"""Shortlist: the first items of one ranker for every example, with their scores; all that an ensemble reads of it.

It is ranked once for each split and column, exactly as `llmrec evaluate` ranks, so that the places of the targets are
those of an evaluation of the ranker. The column `seen_excluded` is ranked anew and not cut from the column `plain`: a
beam search finds other items when the seen ones are masked, and a mixture of rankers weighs them anew.

Shapes: n examples, D items of a shortlist.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import Position, target_position
from llmrec.evaluation.protocol import Rank, answers, save_arrays
from llmrec.evaluation.ranking import UNFILLED, Ranking

ROUNDING = 1e-3  # a log-probability in half precision may exceed 0 by as much


@dataclass(frozen=True)
class Shortlist:
    """First items of a ranker for n examples in one column.

    Attributes:
        items: (n, D) item rows, best first; -1 is an unfilled slot.
        places: (n, D) number of slots before the tie group of each slot.
        scores: (n, D) log-probabilities; -inf in unfilled slots.
        position: The places of the targets in the whole ranking, (n,) each.
        invalid: (n,) number of answers that are no item.
        seconds: Wall time of ranking.
    """

    items: np.ndarray
    places: np.ndarray
    scores: np.ndarray
    position: Position
    invalid: np.ndarray
    seconds: float

    def save(self, path: Path) -> None:
        """Write an .npz file; it appears only when it is complete."""
        arrays = {name: getattr(self, name) for name in ("items", "places", "scores", "invalid", "seconds")}
        save_arrays(path, {**arrays, **self.position._asdict()})

    @classmethod
    def load(cls, path: Path) -> Shortlist:
        """Read a file that `save` wrote."""
        with np.load(path) as saved:
            position = Position(*(saved[name] for name in Position._fields))
            lists = saved["items"], saved["places"], saved["scores"]
            return cls(*lists, position, saved["invalid"], float(saved["seconds"]))


def shortlist(
    rank: Rank, examples: Examples, depth: int, column: str, batch_size: int, description: str = "shortlist"
) -> Shortlist:
    """Rank the catalogue for every example and keep the first items.

    Args:
        rank: Ranker whose scores are log-probabilities.
        examples: Held-out examples.
        depth: Number of items to keep.
        column: plain or seen_excluded.
        batch_size: Number of examples of a batch.
        description: Label of the progress bar.

    Returns:
        The shortlist in the order of `examples`, the same in every process of an `accelerate launch`.

    Raises:
        ValueError: As `llmrec.evaluation.protocol.evaluate` does, or if a score is positive and so no log-probability.
    """
    started = time.monotonic()
    keep = functools.partial(_first, depth=depth)
    values = answers(rank, examples, depth, column, batch_size, keep, description)
    position = Position(*(values[name] for name in Position._fields))
    lists = values["items"], values["places"], values["scores"]
    return Shortlist(*lists, position, values["invalid"], time.monotonic() - started)


def without_seen(excluded: Shortlist, plain: Shortlist, examples: Examples) -> Shortlist:
    """Normalise the probabilities of a column without seen items anew: each is divided by 1 - p(seen items).

    Args:
        excluded: Shortlist in the column `seen_excluded` of a ranker that only leaves the seen items out.
        plain: Shortlist of the same ranker in the column `plain`, which says how likely its seen items were.
        examples: The n examples.
    """
    seen = np.zeros(plain.items.shape, dtype=bool)
    for i in range(len(examples)):
        seen[i] = np.isin(plain.items[i], examples.history(i))
    left = 1 - np.exp(np.where(seen, plain.scores, -np.inf)).sum(axis=1)
    left = np.maximum(left, np.exp(excluded.scores).sum(axis=1))  # no sum of probabilities exceeds 1
    left[left <= 0] = 1  # nothing is listed but the seen items
    return replace(excluded, scores=excluded.scores - np.log(left)[:, None])


def _first(ranking: Ranking, targets: np.ndarray, depth: int) -> dict[str, np.ndarray]:
    """The fields of a `Shortlist` for one batch."""
    filled = ranking.items[:, :depth] != UNFILLED
    scores = np.where(filled, ranking.scores[:, :depth], -np.inf)
    if (scores > ROUNDING).any():
        raise ValueError(f"A member answers with the score {scores.max():.3g}, which is no log-probability.")
    groups, opens = ranking.groups[:, :depth], np.ones(filled.shape, dtype=bool)
    opens[:, 1:] = groups[:, 1:] != groups[:, :-1]
    slots = np.broadcast_to(np.arange(filled.shape[1]), filled.shape)
    return {
        "items": _widened(np.where(filled, ranking.items[:, :depth], UNFILLED), depth, UNFILLED),
        "places": _widened(np.maximum.accumulate(np.where(opens, slots, 0), axis=1), depth, 0),
        "scores": _widened(scores, depth, -np.inf),
        "invalid": ranking.invalid if ranking.invalid is not None else np.zeros(len(ranking), dtype=np.int64),
        **target_position(ranking, targets)._asdict(),
    }


def _widened(values: np.ndarray, width: int, fill: float) -> np.ndarray:
    """(B, width) values with further columns of `fill`, so that all batches have one shape."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)
