"""Search of a mixture on valid examples: one member after another, each with the weight that ranks best.

The figure is the mean of ndcg@10 in both columns, with and without the items of the history, so that neither is bought
with the other. Counts are no probabilities, so a counted member is also tried sharper and flatter.

Shapes: B examples, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.baselines.counted import Popularity
from llmrec.baselines.mixture import Mixture
from llmrec.baselines.queries import Teacher, queries_of
from llmrec.baselines.taught import Taught
from llmrec.data.examples import Examples
from llmrec.runtime.console import progress
from llmrec.runtime.device import from_host

EXAMPLES = 4000  # valid examples that choose; a random sample of a larger split
BATCH = 512  # examples mixed at once; bounds memory at a few times BATCH x N probabilities
WEIGHTS = tuple(step / 10 for step in range(11))  # of the member that is added
POWERS = (1.0, 0.5, 2.0, 4.0)  # of a counted member's scores; the first wins where several are equally good
CUTOFF = 10


class Found(NamedTuple):
    """Best way to add a member.

    Attributes:
        one: Place of the version of what was mixed so far.
        other: Place of the version of the new member.
        weight: Its weight.
        quality: Mean ndcg@10 of both columns.
    """

    one: int
    other: int
    weight: float
    quality: float


def best_mixture(members: Sequence[Taught], valid: Examples, seed: int) -> tuple[Mixture, float]:
    """Choose the weights of members, and the powers of the counted ones.

    Args:
        members: Two or more rankers on one device.
        valid: Valid examples.
        seed: Seed of the sample of valid examples.

    Returns:
        The mixture and its mean ndcg@10 of both columns.
    """
    examples = valid.take(valid.sample(EXAMPLES, seed))
    so_far = [Mixture([version], [1.0]) for version in versions(members[0])]
    quality = 0.0
    for member in members[1:]:
        others = versions(member)
        found = search(so_far, others, examples, members[0].device)
        mixed, quality = so_far[found.one], found.quality
        weights = [*(weight * (1 - found.weight) for weight in mixed.weights), found.weight]
        so_far = [Mixture([*mixed.members, others[found.other]], weights)]
    return so_far[0], quality


def versions(member: Taught) -> list[Taught]:
    """The member, and if it is counted, the same with other powers of its scores."""
    if not isinstance(member.ranker, Popularity):
        return [member]
    base = member.ranker.chosen.power
    return [member.with_power(base * power) for power in POWERS]


def search(so_far: Sequence[Teacher], others: Sequence[Teacher], examples: Examples, device: torch.device) -> Found:
    """Try every version of both sides with every weight; of equally good ones the first is chosen."""
    gains = torch.zeros(len(so_far), len(others), len(WEIGHTS), device=device, dtype=torch.float64)
    firsts = range(0, len(examples), BATCH)
    for first in progress(firsts, "mix on valid", unit="batches"):
        part = range(first, min(first + BATCH, len(examples)))
        queries = queries_of([examples.history(i) for i in part], device)
        targets = from_host(examples.targets[part.start : part.stop], device)[:, None]
        for exclude_seen in (False, True):
            added = [other.probabilities(queries, exclude_seen) for other in others]
            for i, one in enumerate(so_far):
                base = one.probabilities(queries, exclude_seen)
                for j, other in enumerate(added):
                    for k, weight in enumerate(WEIGHTS):
                        gains[i, j, k] += gain(torch.lerp(base, other, weight), targets)
    found = gains.cpu().numpy()
    i, j, k = (int(place) for place in np.unravel_index(found.argmax(), found.shape))
    return Found(i, j, WEIGHTS[k], float(found.max()) / (2 * len(examples)))


def gain(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Sum of ndcg@10 of the (B, 1) targets by (B, N) probabilities; an item without any is a miss."""
    own = probabilities.gather(1, targets)
    before = (probabilities > own).sum(dim=1)
    ndcg = 1 / (before + 2.0).log2()
    return (ndcg * (before < CUTOFF) * (own[:, 0] > 0)).sum()
