"""R-VQ: residual codebooks trained by gradient on the vectors themselves, one level after another.

At each level what is left of a vector is scaled to unit length before it is quantised, so that all levels, and all
items within one, weigh alike. A sum of codes lacks the lengths that were divided out; where a vector is rebuilt they
are those of the average item.

Source: GRID (arXiv:2507.22224), official code: R-VQ, "train_layer_wise", residuals normalised, k-means++ start on a
buffer. Departures: no commitment loss and no straight-through gradient, which would only reach an encoder, and there is
none; AdamW; each level ends at a plateau (plateau.py) where GRID shares out a number of steps; dead codes restart.

Shapes: N items, B rows, L levels, K codes of a level, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.kmeans import kmeans_plus_plus, nearest
from llmrec.tokenizers.shared.residual_quantizer import (
    RESTART_EVERY,
    RESTART_UNTIL,
    START_POINTS_PER_CODE,
    ResidualQuantizer,
)
from llmrec.tokenizers.shared.training_loop import Objective, TrainedTokenizer
from llmrec.tokenizers.shared.vectors import require_distinct

BUFFER = 3072  # points among which k-means++ draws the starting codes, as in GRID; more where codes are many


class Level(Objective):
    """One codebook on points (N, D)."""

    def __init__(self, points_ND: Tensor, codebook_size: int, seed: int):
        super().__init__()
        self.points, self.generator = points_ND, torch.Generator(points_ND.device).manual_seed(seed)
        self.quantizer = ResidualQuantizer(1, codebook_size, points_ND.shape[1], commitment=0).to(points_ND.device)

    def start(self, generator: torch.Generator) -> None:
        """k-means++ draws the codes among a random buffer of points."""
        size = len(self.quantizer.codebooks[0])
        rows = torch.randperm(len(self.points), generator=generator)[: max(BUFFER, START_POINTS_PER_CODE * size)]
        with torch.no_grad():
            buffer_ND = self.points[rows.to(self.points.device)]
            self.quantizer.codebooks[0].copy_(kmeans_plus_plus(buffer_ND, size, generator))

    def loss(self, rows_B: Tensor) -> Tensor:
        """Mean over rows of the squared distance to the nearest code."""
        points_BD = self.points[rows_B]
        return self.quantizer(points_BD).loss * points_BD.shape[1]

    def judge(self, rows_B: Tensor) -> Tensor:
        return self.loss(rows_B)

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, nearness: float) -> None:
        if step % RESTART_EVERY == 0 and nearness < RESTART_UNTIL:
            self.quantizer.restart_dead(self.points[rows_B], optimizer, self.generator)


@dataclass(kw_only=True)
class RVQ(TrainedTokenizer):
    """Residual vector quantisation by gradient."""

    method: ClassVar[str] = "rvq"

    def __post_init__(self):
        super().__post_init__()
        self.lengths: list[float] = []  # of each level's input before it was scaled, on average

    def learn(self, points_ND: Tensor) -> None:
        require_distinct(points_ND, self.codebook_size)
        device, generator = resolve_device(self.device), torch.Generator().manual_seed(self.seed)
        left_ND, self.codebooks, self.lengths = points_ND.to(device), [], []
        for level in range(self.num_levels):
            self.lengths.append(float(left_ND.norm(dim=1).mean()))
            learner = Level(self.level_input(left_ND), self.codebook_size, self.seed)
            learner.start(generator)
            training = self.train(learner, len(points_ND), device)
            self.codebooks.append(learner.quantizer.codebooks[0].detach().clone())
            codes_N = nearest(learner.points, self.codebooks[-1])[0]
            left_ND = learner.points - self.codebooks[-1][codes_N]
            say(
                f"rvq: level {level}, {training.epochs:.0f} epochs, loss {training.loss:.4f}, "
                f"uses {codes_N.unique().numel()} of {self.codebook_size} codes"
            )

    def level_input(self, left_BE: Tensor) -> Tensor:
        return normalize(left_BE, dim=1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        rebuilt_BD = torch.zeros((), device=codes_BL.device)
        for level in reversed(range(self.num_levels)):
            rebuilt_BD = (self.codebooks[level][codes_BL[:, level]] + rebuilt_BD) * self.lengths[level]
        return rebuilt_BD

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        return tensors, {**facts, "lengths": self.lengths}

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        self.lengths = facts["lengths"]
        if len(self.lengths) != self.num_levels:
            raise ValueError(f"{len(self.lengths)} lengths for {self.num_levels} levels")
