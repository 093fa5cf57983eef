"""Fusion: one score for every item that at least one member lists, from the shortlists of all members.

An item has one value from each member, 0 if the member does not list it; its score is the sum over members of share
times value. The ways differ in the value and in the share:

    probabilities  The member's probability of the item; fixed shares.
    ranks          1 / (60 + rank), which needs no scores; fixed shares. Reciprocal rank fusion (Cormack, Clarke and
                   Büttcher, SIGIR 2009), with weights.
    scores         The member's log-probability, scaled to 0 … 1 over its shortlist; fixed shares.
    gate           The same value; two members, and the share of the first is sigmoid(steepness (p - threshold)), where
                   p is its largest probability: the surer the first member is, the more it counts.

The gate is that of How Well Does Generative Recommendation Generalize? (arXiv:2603.19809) and its released code, and
`scores` its control. There the first member is SASRec and the second TIGER, each with 50 items.

Items of equal score are one tie group, in which the target earns the mean over the places, as everywhere in
`llmrec.evaluation.metrics`.

Shapes: m members, n examples, D items of a shortlist, C candidates of an example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmrec.evaluation.ensemble.shortlist import Shortlist
from llmrec.evaluation.metrics import MISS, Position, ndcg
from llmrec.evaluation.protocol import Outcome
from llmrec.evaluation.ranking import UNFILLED
from llmrec.runtime.manifest import JsonObject

RANK_OFFSET = 60  # of reciprocal rank fusion, section 2 of its paper


@dataclass(frozen=True)
class Weighted:
    """A mixture with fixed shares.

    Attributes:
        way: probabilities, ranks or scores.
        weights: Share of each member; they sum to 1.
    """

    way: str
    weights: tuple[float, ...]

    def shares(self, confidence: np.ndarray) -> np.ndarray:
        """(m, 1) share of each member, whatever the (n,) confidence of the first one is."""
        return np.array(self.weights)[:, None]

    def described(self) -> JsonObject:
        """The mixture as JSON."""
        return {"way": self.way, "weights": list(self.weights)}


@dataclass(frozen=True)
class Gated:
    """A mixture of two members in which the first counts more, the surer it is.

    Attributes:
        steepness: Slope of the sigmoid.
        threshold: Largest probability at which both members have half of the weight.
    """

    steepness: float
    threshold: float
    way: ClassVar[str] = "gate"

    def shares(self, confidence: np.ndarray) -> np.ndarray:
        """(2, n) share of each member, from the (n,) largest probability of the first one."""
        first = 1 / (1 + np.exp(-self.steepness * (confidence - self.threshold)))
        return np.stack([first, 1 - first])

    def described(self) -> JsonObject:
        """The mixture as JSON."""
        return {"way": self.way, "steepness": self.steepness, "threshold": self.threshold}


Mixture = Weighted | Gated


def probabilities(member: Shortlist) -> np.ndarray:
    """(n, D) probability of each listed item."""
    return np.exp(member.scores)


def reciprocal_ranks(member: Shortlist) -> np.ndarray:
    """(n, D) 1 / (60 + rank), ranks from 1; the items of a tie group share the rank of its first slot."""
    return np.where(member.items == UNFILLED, 0.0, 1 / (RANK_OFFSET + 1 + member.places))


def scaled_scores(member: Shortlist) -> np.ndarray:
    """(n, D) scores scaled to 0 … 1 over each shortlist; 1 for all of them if they are equal."""
    filled = np.isfinite(member.scores)
    high = member.scores.max(axis=1, keepdims=True, initial=-np.inf, where=filled)
    low = member.scores.min(axis=1, keepdims=True, initial=np.inf, where=filled)
    with np.errstate(invalid="ignore"):  # a list without a finite score, which gets 0 throughout
        scaled = np.where(high > low, (member.scores - low) / np.where(high > low, high - low, 1.0), 1.0)
    return np.where(filled, scaled, 0.0)


VALUES: dict[str, Callable[[Shortlist], np.ndarray]] = {
    "probabilities": probabilities,
    "ranks": reciprocal_ranks,
    "scores": scaled_scores,
    "gate": scaled_scores,
}


class Fusion:
    """The candidates of n examples in one column, to be fused by any mixture.

    Args:
        members: Shortlist of each member.
        targets: (n,) item rows.
    """

    def __init__(self, members: Sequence[Shortlist], targets: np.ndarray):
        self.members, self.targets = members, targets
        # Examples whose target nobody lists are misses by every mixture, so a search need not look at them.
        self.hits = np.flatnonzero(np.any([(one.items == targets[:, None]).any(axis=1) for one in members], axis=0))
        self._found = _Candidates(members, targets, self.hits)

    def ndcg(self, mixture: Mixture, k: int) -> float:
        """Mean ndcg@k of a mixture over the n examples."""
        start, size = self._found.spans(self._found.fused(mixture))
        return float(ndcg(Position(start, size, start), k).sum()) / len(self.targets)

    def outcome(self, mixture: Mixture, k: int) -> Outcome:
        """The answers of a mixture; its seconds are those of all members together.

        Args:
            mixture: Mixture of the members.
            k: Number of slots to keep.
        """
        candidates = _Candidates(self.members, self.targets, np.arange(len(self.targets)))
        fused = candidates.fused(mixture)
        order = np.argsort(-fused, axis=1, kind="stable")
        items = np.full((len(fused), k), UNFILLED)
        first = np.take_along_axis(candidates.items, order, axis=1)[:, :k]
        items[:, : first.shape[1]] = first
        start, size = candidates.spans(fused)
        ranked = np.take_along_axis(fused, order, axis=1)
        opens = np.ones(ranked.shape, dtype=np.int64)
        opens[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        groups = np.take_along_axis(opens.cumsum(axis=1) - 1, np.maximum(start, 0)[:, None], axis=1)[:, 0]
        position = Position(start, size, np.where(start == MISS, MISS, groups))
        invalid = np.sum([one.invalid for one in self.members], axis=0)
        return Outcome(position, items, invalid, sum(one.seconds for one in self.members))


class _Candidates:
    """The items that at least one member lists, for some of the examples.

    Attributes:
        items: (n, C) item rows, ascending; -1 is an unfilled slot.
    """

    def __init__(self, members: Sequence[Shortlist], targets: np.ndarray, rows: np.ndarray):
        self.members, self.targets, self.rows = members, targets[rows], rows
        entries = np.concatenate([one.items[rows] for one in members], axis=1)  # (n, m D)
        order = np.argsort(entries, axis=1, kind="stable")
        ranked = np.take_along_axis(entries, order, axis=1)
        opens = ranked != UNFILLED
        opens[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
        column = np.empty_like(entries)  # of each entry among the candidates; -1 if it is unfilled
        np.put_along_axis(column, order, opens.cumsum(axis=1) - 1, axis=1)
        self._columns = np.split(column, np.cumsum([one.items.shape[1] for one in members])[:-1], axis=1)
        width = 1 + int(column.max(initial=0))
        # The last column takes the unfilled entries, whose place is -1, and is cut off.
        self.items = np.full((len(rows), width + 1), UNFILLED)
        np.put_along_axis(self.items, column, entries, axis=1)
        self.items = self.items[:, :width]
        self._values: dict[Callable[[Shortlist], np.ndarray], np.ndarray] = {}

    def fused(self, mixture: Mixture) -> np.ndarray:
        """(n, C) score of every candidate; -inf in unfilled slots."""
        of = VALUES[mixture.way]
        if of not in self._values:
            self._values[of] = np.stack([self._scattered(*pair, of) for pair in enumerate(self.members)])
        confidence = np.exp(self.members[0].scores[self.rows].max(axis=1, initial=-np.inf))
        shares = mixture.shares(confidence)
        fused = sum(share[:, None] * values for share, values in zip(shares, self._values[of], strict=True))
        return np.where(self.items == UNFILLED, -np.inf, fused)

    def _scattered(self, i: int, member: Shortlist, of: Callable[[Shortlist], np.ndarray]) -> np.ndarray:
        """(n, C) value of every candidate from member `i`; 0 if it does not list the candidate."""
        values = np.zeros((len(self.rows), self.items.shape[1] + 1))
        np.put_along_axis(values, self._columns[i], of(member)[self.rows], axis=1)
        return values[:, :-1]

    def spans(self, fused: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) number of candidates before the target's tie group and size of it; -1 and 1 for a miss."""
        is_target = self.items == self.targets[:, None]
        hit = is_target.any(axis=1)
        score = np.take_along_axis(fused, is_target.argmax(axis=1)[:, None], axis=1)
        start, size = (fused > score).sum(axis=1), (fused == score).sum(axis=1)
        return np.where(hit, start, MISS), np.where(hit, size, 1)
