"""The one training loop: what it holds out, when it stops, what it keeps, and that it repeats itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from llmrec.tokenizers.shared.training_loop import EVERY, Objective, Plateau, TrainingResult, split, train


class Line(Objective):
    """Fits y = 3x; counts what the loop asks of it."""

    def __init__(self, num_items: int, noise: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.x = torch.linspace(-1, 1, num_items)
        self.noise = noise * torch.randn(num_items, generator=torch.Generator().manual_seed(5))
        self.epochs, self.seen, self.progress = [], [], []

    def loss(self, rows_B):
        assert self.training
        self.seen.append(rows_B)
        return (self.weight * self.x[rows_B] - 3 * self.x[rows_B] - self.noise[rows_B]).square().mean()

    def validation_loss(self, rows_B):
        assert not self.training and not torch.is_grad_enabled()
        return (self.weight * self.x[rows_B] - 3 * self.x[rows_B]).square().mean()

    def before_epoch(self, step):
        self.epochs.append(step)

    def after_step(self, step, rows_B, optimizer, progress):
        self.progress.append(progress)


@dataclass
class Options:
    method: ClassVar[str] = "line"

    learning_rate: float = 0.05
    weight_decay: float = 0.0
    batch_size: int = 32
    max_epochs: int = 2000
    patience: int = 10
    seed: int = 0


def trained(objective: Line, **options) -> TrainingResult:
    return train(objective, len(objective.x), torch.device("cpu"), Options(**options))


def test_a_plateau_is_patience_readings_without_a_fall_of_a_thousandth():
    plateau = Plateau(patience=3)
    losses = [1.0, 0.5, 0.4999, 0.4996, 0.4994, 0.4993]  # a thousandth below .5 is .4995; .4994 is lower
    assert [plateau.read(loss) for loss in losses] == [True] * 6
    assert plateau.stale == 1 and not plateau.is_over
    assert not plateau.read(0.7) and not plateau.read(0.6)
    assert plateau.is_over and plateau.best == 0.4993
    with pytest.raises(ValueError, match=r"training diverged: the held-out loss is nan\. Lower learning_rate"):
        plateau.read(math.nan)


@pytest.mark.parametrize(("num_items", "held_out"), [(12, 0), (319, 0), (320, 16), (1000, 50), (10**6, 8192)])
def test_one_item_in_twenty_is_held_out_where_that_leaves_enough(num_items, held_out):
    training, held_out_rows = split(num_items, torch.Generator().manual_seed(0))
    assert len(held_out_rows) == (held_out or num_items)
    assert torch.cat([training, held_out_rows] if held_out else [training]).sort().values.equal(torch.arange(num_items))
    other = split(num_items, torch.Generator().manual_seed(1))[1]
    assert not torch.equal(held_out_rows, other)


def test_held_out_items_are_never_trained_on_and_every_other_one_is():
    objective = Line(400)
    training = trained(objective, max_epochs=20)
    held_out_rows = split(400, torch.Generator().manual_seed(0))[1]
    assert training.held_out == 20 and training.epochs == 20
    assert all(len(rows) == 32 for rows in objective.seen) and len(objective.seen) == 20 * (380 // 32)
    assert set(torch.cat(objective.seen).tolist()) == set(range(400)) - set(held_out_rows.tolist())
    assert objective.epochs == [1 + 11 * epoch for epoch in range(20)]


def test_training_stops_at_the_plateau_and_reports_its_progress():
    objective = Line(400)
    training = trained(objective, max_epochs=10_000, patience=2)
    assert objective.weight.item() == pytest.approx(3, abs=1e-3)
    assert training.epochs < 1000 and len(objective.seen) % EVERY == 0
    assert objective.progress[0] < 0.01 and objective.progress[-1] == 0.5  # one reading of two had passed
    assert not objective.training


def test_the_best_weights_are_kept_the_first_among_them():
    objective = Line(400)
    nn.init.constant_(objective.weight, 3)
    objective.noise += 10 * objective.x  # the training loss leads away from the validation loss
    assert trained(objective, max_epochs=30).loss == 0
    assert objective.weight == 3


def test_twelve_items_in_one_batch_are_validated_by_themselves():
    objective = Line(12)
    training = trained(objective, max_epochs=300)
    assert training.held_out == 0 and {len(rows) for rows in objective.seen} == {12}
    assert training.epochs == len(objective.seen)


def test_no_epochs_leave_the_start():
    objective = Line(50)
    assert trained(objective, max_epochs=0).epochs == 0
    assert objective.weight == 0 and not objective.seen


def test_every_reading_is_in_the_log_and_doubling_ones_are_shown(capsys):
    class Measured(Line):
        def metrics(self, rows_N):
            assert not self.training and len(rows_N) == 400
            return {"weight": self.weight.item(), "parts": [1.0, 2.0], "shares": {"x": 0.25}}

    objective = Measured(400)
    readings = trained(objective, max_epochs=65, patience=50).log
    assert [reading["step"] for reading in readings] == [*range(0, 701, 100), 715]
    assert readings[0]["weight"] == 0 and readings[-1]["weight"] == pytest.approx(3, abs=0.1)
    assert readings[0]["loss"] == pytest.approx(float((9 * objective.x.square())[split_of_400()].mean()))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("line: step")]
    assert [line.split(";")[0] for line in said] == [f"line: step {step}" for step in (100, 200, 400, 715)]
    assert said[0].endswith("; parts 1 2; shares x 0.25")


def split_of_400():
    return split(400, torch.Generator().manual_seed(0))[1]


def test_law_12_the_same_seed_takes_the_same_steps():
    runs = [Line(200, noise=1) for _ in range(3)]
    for objective, seed in zip(runs, (0, 0, 1), strict=True):
        trained(objective, max_epochs=7, seed=seed)
    assert runs[0].weight == runs[1].weight != runs[2].weight
