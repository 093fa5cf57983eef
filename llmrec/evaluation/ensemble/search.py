"""The choice of a mixture on the valid examples: the largest mean of both columns' ndcg, and the simpler one of equals.

All mixtures of a fixed grid are measured, so that the choice does not depend on a start or a seed: the weights of two
members in steps of .05, of three and four in steps of .1, and the gate's grid as its authors have it. Of five members
and more one weight after the other is improved, from equal weights, until none improves.

Simpler is a mixture of fewer members, then an earlier way of WAYS, then one whose weights are nearer to one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from llmrec.configs.ensemble import WAYS
from llmrec.evaluation.ensemble.fusion import Fusion, Gated, Mixture, Weighted
from llmrec.runtime.manifest import JsonObject

STEPS = {2: 20, 3: 10, 4: 10}  # parts that the weights of so many members are multiples of
COORDINATE_STEPS = 10  # parts of one weight in the search over five members or more
STEEPNESS = (1, 5, 9, 13, 17, 21, 25)  # grid_search.py of the authors of the gate
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
EQUAL = 1e-9  # values that differ by less are the same but for rounding


class Measured(NamedTuple):
    """A mixture and its quality on the valid examples.

    Attributes:
        mixture: The mixture.
        ndcg: Column -> mean ndcg at the largest cut-off.
    """

    mixture: Mixture
    ndcg: dict[str, float]

    @property
    def value(self) -> float:
        """Mean over the columns, by which mixtures are chosen."""
        return sum(self.ndcg.values()) / len(self.ndcg)

    def described(self) -> JsonObject:
        """The mixture and its quality as JSON."""
        return {**self.mixture.described(), "valid": {**self.ndcg, "mean": self.value}}


def search(fusions: Mapping[str, Fusion], ways: Sequence[str], num_members: int, k: int) -> list[Measured]:
    """Measure the mixtures of every way.

    Args:
        fusions: Column -> the valid examples to be fused.
        ways: Ways to mix; the gate needs two members.
        num_members: Number of members m.
        k: Cut-off of ndcg.

    Returns:
        All mixtures that were measured, way by way.
    """

    def measure(mixture: Mixture) -> Measured:
        return Measured(mixture, {column: fusion.ndcg(mixture, k) for column, fusion in fusions.items()})

    found = []
    for way in ways:
        if way == Gated.way:
            found += [measure(Gated(*parameters)) for parameters in product(STEEPNESS, THRESHOLDS)]
        elif num_members in STEPS:
            found += [measure(Weighted(way, weights)) for weights in grid(num_members, STEPS[num_members])]
        else:
            found += coordinate_search(way, num_members, measure)
    return found


def best(found: Sequence[Measured]) -> Measured:
    """The mixture of the largest value; of equal ones the simplest."""
    largest = max(one.value for one in found)
    return min((one for one in found if one.value >= largest - EQUAL), key=lambda one: complexity(one.mixture))


def complexity(mixture: Mixture) -> tuple[int, int, float]:
    """Order of mixtures from simple to complex; see the header of this file."""
    if isinstance(mixture, Gated):
        return 2, WAYS.index(mixture.way), 0.0
    used = [weight for weight in mixture.weights if weight > 0]
    return len(used), WAYS.index(mixture.way), max(used) - min(used)


def grid(num_members: int, parts: int) -> Iterator[tuple[float, ...]]:
    """All weights that are multiples of 1 / parts and sum to 1."""
    for counts in product(range(parts + 1), repeat=num_members - 1):
        if sum(counts) <= parts:
            yield tuple(count / parts for count in (*counts, parts - sum(counts)))


def coordinate_search(way: str, num_members: int, measure) -> list[Measured]:
    """Set one weight after the other to the best of a grid, the others scaled, until none improves the value."""
    at = measure(Weighted(way, (1 / num_members,) * num_members))
    found, improved = [at], True
    while improved:
        improved = False
        for i in range(num_members):
            tried = [measure(Weighted(way, changed(at.mixture.weights, i, part / COORDINATE_STEPS)))
                     for part in range(COORDINATE_STEPS + 1)]  # fmt: skip
            found += tried
            ahead = best([at, *tried])
            improved |= ahead.value > at.value + EQUAL
            at = ahead
    return found


def changed(weights: tuple[float, ...], i: int, weight: float) -> tuple[float, ...]:
    """The weights with that of member `i` replaced and the others scaled to the rest, equal if they were all 0."""
    others = 1 - weights[i]
    scaled = [(1 - weight) * (w / others if others > 0 else 1 / (len(weights) - 1)) for w in weights]
    return (*scaled[:i], weight, *scaled[i + 1 :])
