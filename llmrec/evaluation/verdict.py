"""The conclusion of an evaluation in two sentences: who is ahead and by how much, and whether that is certain.

One system, the reference, is compared with the best of the others: ours with the baselines, or the first run of a
comparison with the rest. Everything is read off the means and the paired intervals that the tables show. The column is
the one in which the best system is better, since a shop would serve that; the other one is mentioned where it
contradicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.summary import OURS
from llmrec.runtime.manifest import JsonObject

SERVED = {"plain": "if items of the history may be returned", "seen_excluded": "if items of the history are left out"}
IN_TABLE = {"plain": "may return", "seen_excluded": "left out"}  # what happens to items of the history
METRIC = "ndcg"
MODEL, MIXTURE = "the model (ours)", "the mixture (ours)"  # what `ours` is


@dataclass(frozen=True)
class Contest:
    """The reference and the best of the others in one column.

    Attributes:
        column: plain or seen_excluded.
        reference: Name of the reference.
        other: Name of the best other system.
        num_others: Number of the others.
        value: Metric of the reference.
        other_value: Metric of the best other.
        difference: mean, low and high of the reference less the other, paired over users.
    """

    column: str
    reference: str
    other: str
    num_others: int
    value: float
    other_value: float
    difference: Mapping[str, float]

    @property
    def ahead(self) -> str | None:
        """The system with the higher mean; None if both are the same."""
        mean = self.difference["mean"]
        return self.reference if mean > 0 else self.other if mean < 0 else None

    @property
    def is_certain(self) -> bool:
        """True if the interval excludes 0."""
        return excludes_zero(self.difference)

    def result(self, metric: str) -> str:
        """Sentence on who is ahead and by how much."""
        values = f"{max(self.value, self.other_value):.4f} against {min(self.value, self.other_value):.4f}"
        if self.ahead is None:
            return f"{self.reference} and {self.other} are level: {metric} is {self.value:.4f} for both {self._served}."
        if self.ahead == self.other:
            return f"{self.other} is ahead of {self.reference}: {metric} is {values} {self._served}."
        if self.num_others == 1:
            return f"{self.reference} is ahead of {self.other}: {metric} is {values} {self._served}."
        beaten = f"all {self.num_others} others" if self.num_others > 2 else "both others"
        return f"{self.reference} is ahead of {beaten}: {metric} is {values} of {self.other}, the next, {self._served}."

    def certainty(self, num_users: int) -> str:
        """Clause on whether the difference is more than chance."""
        if self.ahead is None:
            return f"The 95 % interval of the difference over {num_users:,} users is {interval_text(self.difference)}"
        lead = interval_text(negated(self.difference) if self.ahead == self.other else self.difference)
        certain, where = ("certain", "excludes") if self.is_certain else ("not certain", "contains")
        return f"This is {certain}: the 95 % interval of the lead over {num_users:,} users, {lead}, {where} 0"

    @property
    def _served(self) -> str:
        return SERVED[self.column]


def excludes_zero(difference: Mapping[str, float]) -> bool:
    """True if the interval of a difference lies on one side of 0."""
    return difference["low"] > 0 or difference["high"] < 0


def interval_text(difference: Mapping[str, float]) -> str:
    """The ends of the interval of a difference, with their signs."""
    return f"[{difference['low']:+.4f}, {difference['high']:+.4f}]"


def contest(
    column: str, reference: str, values: Mapping[str, float], differences: Mapping[str, Mapping[str, float]]
) -> Contest:
    """Find the best other system of a column.

    Args:
        column: plain or seen_excluded.
        reference: Name of the reference.
        values: Metric of every system.
        differences: For each system but the reference: mean, low and high of the reference less that system.
    """
    other = max(differences, key=values.__getitem__)
    return Contest(column, reference, other, len(differences), values[reference], values[other], differences[other])


def in_words(contests: list[Contest], metric: str, num_users: int) -> list[str]:
    """Two sentences on the column with the better system; the other column is named if someone else is ahead in it.

    Args:
        contests: The contest of each column.
        metric: Name of the metric with its cut-off.
        num_users: Number of users that the intervals are over.
    """
    first, *others = sorted(contests, key=lambda one: -max(one.value, one.other_value))
    certainty = first.certainty(num_users)
    for other in others:
        if (other.ahead == other.reference) != (first.ahead == first.reference) and other.ahead:
            how = "certain" if other.is_certain else "not certain"
            certainty += f"; {SERVED[other.column]}, {other.ahead} is ahead ({how})"
    return [_sentence(first.result(metric)), f"{certainty}."]


def _sentence(text: str) -> str:
    """The text with a capital letter, unless it begins with the name of a system."""
    return f"T{text[1:]}" if text.startswith("the ") else text


def of_evaluation(metrics: JsonObject, ours: str = MODEL) -> list[str]:
    """Sentences on an evaluation, whose first system is the reference.

    Args:
        metrics: Content of metrics.json.
        ours: What `ours` is called.
    """
    metric = f"{METRIC}@{max(metrics['k'])}"
    systems = {ours if name == OURS else name: of for name, of in metrics["systems"].items()}
    reference = next(iter(systems))
    if not metrics["differences"]:
        values = systems[reference]
        column = max(COLUMNS, key=lambda name: values[name][metric])
        low, high = values[column]["intervals"][metric]
        shown = f"{values[column][metric]:.4f}, 95 % interval [{low:.4f}, {high:.4f}]"
        return [
            _sentence(f"{reference} has {metric} {shown}, {SERVED[column]}."),
            "There is no other system to compare it with; name some by --baselines.",
        ]
    contests = [
        contest(
            column,
            reference,
            {system: of[column][metric] for system, of in systems.items()},
            {system: of[column][metric] for system, of in metrics["differences"].items()},
        )
        for column in COLUMNS
    ]
    return in_words(contests, metric, metrics["num_users"])


def of_comparison(result: JsonObject) -> list[str]:
    """Sentences on the result of `llmrec.evaluation.compare.compare`, whose first run is the reference."""
    reference, metric = next(iter(result["systems"])), f"{METRIC}@{max(result['k'])}"
    contests = [
        contest(
            column,
            reference,
            {name: of[column][metric]["mean"] for name, of in result["systems"].items()},
            {name: negated(of[column][metric]) for name, of in result["differences"].items()},
        )
        for column in COLUMNS
        if result["differences"]
    ]
    if not contests:
        return [f"All runs are called {reference}, so there is nothing to compare; give them different --names."]
    return in_words(contests, metric, result["num_users"])


def negated(difference: Mapping[str, float]) -> dict[str, float]:
    """The difference of the same two systems the other way round."""
    return {"mean": -difference["mean"], "low": -difference["high"], "high": -difference["low"]}
