"""What the four kinds of job have in common: their options, their surroundings, and what they hand back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import Data
from ranking import Ranks, Scorer, rank_targets, selection_score, table
from torch import Tensor, nn

Job = dict[str, Any]  # id, data, kind, seed, and options of the kind: plan.py


@dataclass(frozen=True)
class Surroundings:
    """Where a fit finds its teachers and reports its progress.

    Attributes:
        checkpoints: Directory of fitted teachers.
        note: Takes the step and the curve so far.
        shorten: Share of the steps to run; below 1 for smoke tests.
    """

    checkpoints: Path
    note: Callable[[int, list], None] = lambda step, curve: None
    shorten: float = 1.0


@dataclass(frozen=True)
class Fitted:
    """A finished job: its line in results.jsonl, its ranks on valid and test, and a checkpoint if others need it."""

    result: dict[str, Any]
    ranks: dict[str, Ranks]
    checkpoint: dict[str, Any] | None


Fit = Callable[[Data, Job, Surroundings], Fitted]


def rank_both(scorer: Scorer, data: Data, one_length: bool = False) -> dict[str, Ranks]:
    """Rank all targets of valid and test."""
    return {split: rank_targets(scorer, data, split, one_length=one_length) for split in ("valid", "test")}


@dataclass
class BestStep:
    """The best step so far by `selection_score`, with its weights, the curve, and the seconds spent on evaluation.

    `examples` limits the valid examples that choose.
    """

    model: nn.Module
    examples: int | None = None
    score: float = -1
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[tuple] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0

    def evaluate(self, step: int, scorer: Scorer, data: Data, one_length: bool = False, *more: float) -> None:
        """Score the model as it is, and keep it if it is the best; `more` is kept in the curve."""
        began = time.time()
        self.model.eval()
        score = selection_score(table(rank_targets(scorer, data, "valid", data.selection[: self.examples], one_length)))
        self.model.train()
        self.seconds += time.time() - began
        self.curve.append((step, round(score, 5), *more))
        if score > self.score:
            self.score, self.step = score, step
            self.weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def restore(self, steps: int) -> dict[str, Any]:
        """Load the best weights, and return what results.jsonl says of the training."""
        train_seconds = round(time.time() - self.started - self.seconds, 1)
        self.model.load_state_dict(self.weights)
        self.model.eval()
        return {"best_step": self.step, "steps": steps, "train_s": train_seconds, "curve": self.curve}
