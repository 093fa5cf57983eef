"""The one training loop of the trained item tokenizers, and the one rule that stops it.

The papers train for 5,000 to 20,000 epochs, whatever the catalogue. Here all methods stop by one rule, so that neither
the size of a catalogue nor patience decides between them: HELD_OUT of the items are never trained on, their loss (the
method's own reconstruction or contrast, with nearest codes and nothing random) is read every EVERY steps, and training
ends once it has not fallen by a relative TOLERANCE for `patience` readings. The best weights read are kept, the
starting ones among them. A catalogue too small to spare items is judged by its training loss.

AdamW at a constant rate: a decay needs an end that is known beforehand. Data and random draws live on the device, and
between readings the host waits for nothing.

Every reading goes into a log, with what the method itself says of a sample of the items; readings 1, 2, 4, 8, … are
said in the terminal.

Shapes: N items, B rows of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import progress, say
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.vectors import ResidualTokenizer
from llmrec.views import ItemViews

EVERY = 100  # steps between readings of the held-out loss
TOLERANCE = 1e-3  # relative fall of it that counts as one
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 0.05, 16, 8192  # fewer would be noise, more would only cost time
WATCHED = 8192  # most items that a method's own signs are read on


class Objective(nn.Module, ABC):
    """What is trained: parameters, and the losses of item rows (B,) under them.

    Attributes:
        least_steps: Steps before which a plateau is no end, for a method that changes what it minimises until then.
    """

    least_steps: int = 0

    @abstractmethod
    def loss(self, rows_B: Tensor) -> Tensor:
        """What is minimised."""

    @abstractmethod
    def judge(self, rows_B: Tensor) -> Tensor:
        """What stops training: the mean over rows of what the method is for, in evaluation mode."""

    def watch(self, rows_N: Tensor) -> JsonObject:
        """What the log shows beside the loss: name -> a number, one per level, or name -> number; evaluation mode."""
        return {}

    def before_epoch(self, step: int) -> None:
        """Called before each pass over the items; `step` is that which comes next, 1 at the start."""

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, nearness: float) -> None:
        """Called after each step and its reading; `nearness` to the end of training is 0 at its start, 1 at its end."""


class Training(NamedTuple):
    """How training went.

    Attributes:
        epochs: Passes over the training items; a part of one counts as its part.
        loss: Smallest loss read.
        held_out: Items it was read on; 0 where it is the training items' own.
    """

    epochs: float
    loss: float
    held_out: int


class Plateau:
    """Losses read so far: the best of them, and how many readings have brought nothing new."""

    def __init__(self, patience: int):
        self.patience, self.stale = patience, 0
        self.best = self._mark = math.inf

    def read(self, loss: float) -> bool:
        """Take note of a loss; True if it is the best so far.

        Raises:
            ValueError: If it is not finite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"training diverged: the held-out loss is {loss}. Lower learning_rate.")
        fell = loss < self._mark - TOLERANCE * abs(self._mark) if math.isfinite(self._mark) else True
        self.stale = 0 if fell else self.stale + 1
        self._mark = loss if fell else self._mark
        is_best = loss < self.best
        self.best = min(self.best, loss)
        return is_best

    @property
    def is_over(self) -> bool:
        return self.stale >= self.patience


@dataclass(kw_only=True)
class TrainedTokenizer(ResidualTokenizer):
    """A residual tokenizer that is trained by gradient."""

    learning_rate: float = option("Of AdamW, constant.", 1e-3, above=0)
    weight_decay: float = option("Of AdamW.", 1e-4, least=0)
    batch_size: int = option("Items of a training step.", 1024, least=1)
    max_epochs: int = option("Most passes over the items; 0 leaves the starting codebooks.", 2000, least=0)
    patience: int = option(
        "Readings of the held-out loss, one per 100 steps, without a fall before the end.", 10, least=1
    )

    def __post_init__(self):
        super().__post_init__()
        self.log: list[list[JsonObject]] = []

    @property
    def training_log(self) -> list[list[JsonObject]]:
        return self.log

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.log = []
        return super().fit(catalog, views)

    def train(self, learner: Objective, num_items: int, device: torch.device) -> Training:
        """Train until the plateau and leave the learner in evaluation mode with its best weights; adds to the log.

        Args:
            learner: On the device.
            num_items: N.
            device: Of the learner and its data.
        """
        generator = torch.Generator(device).manual_seed(self.seed)
        training_rows, judged_rows = split(num_items, generator)
        optimizer = torch.optim.AdamW(
            learner.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        if len(training_rows) < self.batch_size:
            say(
                f"{self.method}: batch_size {self.batch_size} is more than the {len(training_rows)} items to train on; "
                "a step takes them all"
            )
        per_epoch = max(1, len(training_rows) // self.batch_size)
        most, plateau, step = self.max_epochs * per_epoch, Plateau(self.patience), 0
        watched_rows = torch.cat([judged_rows, training_rows])[: min(num_items, WATCHED)]
        self.log.append([])
        plateau.read(self.reading(0, learner, judged_rows, watched_rows))
        kept = copy_of(learner)
        for step in progress(range(1, most + 1), f"train {self.method}", unit="steps at most"):
            place = (step - 1) % per_epoch
            if place == 0:
                learner.before_epoch(step)
                order = training_rows[torch.randperm(len(training_rows), generator=generator, device=device)]
            rows_B = order[place * self.batch_size :][: self.batch_size]
            _update(learner, rows_B, optimizer)
            if step % EVERY == 0 or step == most:
                if plateau.read(self.reading(step, learner, judged_rows, watched_rows)):
                    kept = copy_of(learner)
                if plateau.is_over and step >= learner.least_steps:
                    break
            # After the reading: codes that restart here have until the next one to settle.
            learner.after_step(step, rows_B, optimizer, max(step / most, plateau.stale / self.patience))
        learner.load_state_dict(kept)
        learner.eval()
        held_out = len(judged_rows) if len(training_rows) < num_items else 0
        return Training(step / per_epoch, plateau.best, held_out)

    def reading(self, step: int, learner: Objective, judged_rows: Tensor, watched_rows: Tensor) -> float:
        """The loss that stops training, after noting it in the log with the signs of the method."""
        readings = self.log[-1]
        loss = read_loss(learner, judged_rows, self.batch_size)
        readings.append({"step": step, "loss": loss, **learner.watch(watched_rows)})
        count = len(readings) - 1  # the start is not said
        if count & (count - 1) == 0 < count:
            say(f"{self.method}: {in_words(readings[-1])}")
        return loss


def split(num_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to judge by, on the device of the generator; both are all where none can be spared."""
    rows_N = torch.randperm(num_items, generator=generator, device=generator.device)
    held_out = min(int(HELD_OUT * num_items), MOST_HELD_OUT)
    return (rows_N[held_out:], rows_N[:held_out]) if held_out >= LEAST_HELD_OUT else (rows_N, rows_N)


def _update(learner: Objective, rows_B: Tensor, optimizer: torch.optim.Optimizer) -> None:
    learner.train()
    optimizer.zero_grad()
    learner.loss(rows_B).backward()
    optimizer.step()


@torch.no_grad()
def read_loss(learner: Objective, rows_N: Tensor, batch_size: int) -> float:
    """Mean of `judge` over rows; the one place where the host waits for the device."""
    learner.eval()
    losses = [learner.judge(rows_B) * len(rows_B) for rows_B in rows_N.split(batch_size)]
    return float(torch.stack(losses).sum() / len(rows_N))


def in_words(reading: JsonObject) -> str:
    """An entry of the log in a line."""
    parts = []
    for name, value in reading.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{part} {number:.3g}" for part, number in value.items())
        else:
            shown = " ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value]))
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return "; ".join(parts)


def copy_of(learner: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}
