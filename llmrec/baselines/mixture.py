"""Mixtures of teachers: a weighted mean of their probabilities.

Rankers that fail on different users are better together. Each member leaves out the seen items itself, so that all
members have the same say in what is left.

Shapes: Q queries, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmrec.baselines.queries import Queries, Teacher, in_proportion
from llmrec.configs.options import Config
from llmrec.evaluation.learning import Epoch


class MixtureOptions(Config):
    """Options of a mixture: none, since valid examples choose the weights."""


class Mixture:
    """A weighted mean of the probabilities of teachers.

    Args:
        members: Two or more teachers of one catalogue on one device.
        weights: Their weights, which sum to 1.
    """

    name = "mixture"
    options = MixtureOptions
    chosen = MixtureOptions()
    log: Sequence[Epoch] = ()

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float]):
        self.members, self.weights = list(members), list(weights)

    @property
    def exclude_seen(self) -> bool:
        """True if all members were better on valid examples without the items of the history."""
        return all(member.exclude_seen for member in self.members)

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
        """Answer queries as `llmrec.baselines.queries.Teacher` says; the temperature acts on the mixture."""
        mixed = torch.zeros((), device=queries.items.device)
        for member, weight in zip(self.members, self.weights, strict=True):
            if weight > 0:
                mixed = mixed + weight * member.probabilities(queries, exclude_seen)
        return mixed if temperature == 1 else in_proportion(mixed, queries, False, temperature)

    def tensors(self) -> dict[str, Tensor]:
        """Weights of the members, to be saved; the members are saved by themselves."""
        return {"weights": torch.tensor(self.weights, dtype=torch.float64)}
