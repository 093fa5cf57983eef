"""The training loop of the trained item tokenizers, and the rule that stops it.

The papers train for 5,000 to 20,000 epochs, whatever the catalogue. Here all methods stop by one rule, so that neither
the size of a catalogue nor patience decides between them: HELD_OUT of the items are never trained on, their loss (the
method's own reconstruction or contrast, with nearest codes and nothing random) is read every EVERY steps, and training
ends once it has not fallen by a relative TOLERANCE for `patience` readings. The best weights read are kept, the
starting ones among them. A catalogue too small to spare items is validated by its training loss.

AdamW at a constant rate: a decay needs an end that is known beforehand. Data and random draws live on the device, and
between readings the host waits for nothing.

Under `accelerate launch` each process takes a part of every batch, if the loss allows it, and their gradients are
averaged: the batches and, up to rounding, the weights are those of one process.

Every reading goes into a log, with the method's own metrics on a sample of the items; readings 1, 2, 4, 8, … are shown
in the terminal.

Shapes: N items, B items of a batch.
"""

from __future__ import annotations

import collections
import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from llmrec.runtime import processes
from llmrec.runtime.console import progress, say
from llmrec.runtime.manifest import JsonObject

EVERY = 100  # steps between readings of the held-out loss
TOLERANCE = 1e-3  # relative fall of it that counts as one
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 0.05, 16, 8192  # fewer would be noise, more would only cost time
MEASURED = 8192  # most items that a method's own metrics are computed on


class TrainingOptions(Protocol):
    """Options that the loop reads; the tokenizers that are trained have them among their own."""

    method: ClassVar[str]
    seed: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int


class Objective(nn.Module, ABC):
    """Parameters to be trained, and their losses on item rows (B,).

    Attributes:
        least_steps: Steps before which a plateau is no end, for a method that changes what it minimises until then.
        divides: Whether the loss of a batch is the mean over its items and nothing in it is drawn, so that several
            processes may take a part each; else all of them compute the whole batch.
    """

    least_steps: int = 0
    divides: bool = False

    @abstractmethod
    def loss(self, rows_B: Tensor) -> Tensor:
        """The training loss."""

    @abstractmethod
    def validation_loss(self, rows_B: Tensor) -> Tensor:
        """The loss that stops training: the mean over items of the method's main loss, in evaluation mode."""

    def metrics(self, rows_N: Tensor) -> JsonObject:
        """Further entries of the log: name -> a number, one per level, or name -> number; in evaluation mode."""
        return {}

    def running_means(self) -> list[Tensor]:
        """Tensors that `loss` moves towards a mean over the items of its batch, in place."""
        return []

    def order(self, rows_N: Tensor) -> Tensor:
        """Order of the items of a pass, given in random order."""
        return rows_N

    def before_epoch(self, step: int) -> None:
        """Prepare a pass over the items; `step` is that which comes next, 1 at the start."""

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Act after a step and its reading; `progress` towards the end of training goes from 0 to 1."""


class TrainingResult(NamedTuple):
    """The outcome of a training.

    Attributes:
        epochs: Passes over the training items; a part of one counts as its part.
        loss: Smallest loss read.
        held_out: Number of items it was read on; 0 where it is the training items' own.
        log: Readings: step, loss, and the metrics of the method.
        late: Weights at the last readings up to the best one, which is the last; as many as were asked for, or fewer if
            there were no more. Those at the start only if nothing was better.
    """

    epochs: float
    loss: float
    held_out: int
    log: list[JsonObject]
    late: list[dict[str, Tensor]]

    def __str__(self) -> str:
        kind = f"loss on {self.held_out} held-out items" if self.held_out else "training loss"
        return f"{self.epochs:.0f} epochs, {kind} {self.loss:.4f}"


class Plateau:
    """Losses read so far: the best of them, and the number of readings without an improvement."""

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
        """True once `patience` readings have passed without an improvement."""
        return self.stale >= self.patience


def train(
    objective: Objective, num_items: int, device: torch.device, options: TrainingOptions, num_late: int = 1
) -> TrainingResult:
    """Train until the plateau, and leave the objective in evaluation mode with its best weights.

    Args:
        objective: On the device.
        num_items: N.
        device: Of the objective and its data.
        options: Of the method.
        num_late: Number of weights to keep; see `TrainingResult.late`.

    Returns:
        The epochs that it took, the smallest loss, the log, and the weights.

    Raises:
        ValueError: If the loss is not finite.
    """
    generator = torch.Generator(device).manual_seed(options.seed)
    training_rows, held_out_rows = split(num_items, generator)
    optimizer = torch.optim.AdamW(
        objective.parameters(), options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    size = options.batch_size
    if len(training_rows) < size:
        say(
            f"{options.method}: batch_size {size} is more than the {len(training_rows)} items to train on; a step "
            "takes them all"
        )
    per_epoch = max(1, len(training_rows) // size)
    most, plateau, step = options.max_epochs * per_epoch, Plateau(options.patience), 0
    measured_rows = torch.cat([held_out_rows, training_rows])[: min(num_items, MEASURED)]
    reader = _Reader(objective, held_out_rows, measured_rows, options)
    plateau.read(reader.read(0))
    late, read = [_copy_of(objective)], collections.deque[dict[str, Tensor]](maxlen=num_late)
    for step in progress(range(1, most + 1), f"train {options.method}", unit="steps at most"):
        place = (step - 1) % per_epoch
        if place == 0:
            objective.before_epoch(step)
            shuffled = torch.randperm(len(training_rows), generator=generator, device=device)
            order = objective.order(training_rows[shuffled])
        rows_B = order[place * size :][:size]
        _update(objective, rows_B, optimizer)
        if step % EVERY == 0 or step == most:
            is_best = plateau.read(reader.read(step))
            if is_best or num_late > 1:
                read.append(_copy_of(objective))
            late = list(read) if is_best else late
            if plateau.is_over and step >= objective.least_steps:
                break
        # After the reading: codes that restart here have until the next one to settle.
        objective.after_step(step, rows_B, optimizer, max(step / most, plateau.stale / options.patience))
    if processes.count() > 1:  # on GPUs their weights may differ by rounding, and each encodes a part of the items
        late = [{name: processes.from_first(tensor) for name, tensor in weights.items()} for weights in late]
    objective.load_state_dict(late[-1])
    objective.eval()
    held_out = len(held_out_rows) if len(training_rows) < num_items else 0
    return TrainingResult(step / per_epoch, plateau.best, held_out, reader.log, late)


def split(num_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw item rows to train on and item rows to validate on; both are all items where none can be spared.

    Returns:
        Two int64 tensors on the device of the generator.
    """
    rows_N = torch.randperm(num_items, generator=generator, device=generator.device)
    held_out = min(int(HELD_OUT * num_items), MOST_HELD_OUT)
    return (rows_N[held_out:], rows_N[:held_out]) if held_out >= LEAST_HELD_OUT else (rows_N, rows_N)


def _update(objective: Objective, rows_B: Tensor, optimizer: torch.optim.Optimizer) -> None:
    objective.train()
    optimizer.zero_grad()
    if objective.divides and 1 < processes.count() <= len(rows_B):
        part_b = rows_B[processes.share(len(rows_B))]
        objective.loss(part_b).backward()
        gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        processes.add_up([*gradients, *objective.running_means()], len(part_b) / len(rows_B))
    else:
        objective.loss(rows_B).backward()
    optimizer.step()


class _Reader:
    """Reads the loss that stops training, and notes it in the log with the metrics of the method."""

    def __init__(self, objective: Objective, held_out_rows: Tensor, measured_rows: Tensor, options: TrainingOptions):
        self.objective, self.held_out_rows, self.measured_rows = objective, held_out_rows, measured_rows
        self.options = options
        self.log: list[JsonObject] = []

    def read(self, step: int) -> float:
        loss = read_loss(self.objective, self.held_out_rows, self.options.batch_size)
        loss = float(processes.from_first(torch.tensor(loss, dtype=torch.float64)))  # all stop at the same step
        self.log.append({"step": step, "loss": loss, **self.objective.metrics(self.measured_rows)})
        count = len(self.log) - 1  # the start is not shown
        if count & (count - 1) == 0 < count:
            say(f"{self.options.method}: {in_words(self.log[-1])}")
        return loss


@torch.no_grad()
def read_loss(objective: Objective, rows_N: Tensor, batch_size: int) -> float:
    """Mean of the validation loss over items; the one place where the host waits for the device."""
    objective.eval()
    losses = [objective.validation_loss(rows_B) * len(rows_B) for rows_B in rows_N.split(batch_size)]
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


def _copy_of(objective: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in objective.state_dict().items()}
