"""R-VQ: residual codebooks trained by gradient on the vectors themselves, one level after another.

At each level the residual of a vector is scaled to unit length before it is quantised, so that all levels, and all
items within one, weigh alike. A sum of codes lacks the lengths that were divided out; where a vector is rebuilt they
are those of the average item.

Source: GRID (arXiv:2507.22224), official code: R-VQ, "train_layer_wise", residuals normalised, k-means++ start on a
buffer. Departures: no commitment loss and no straight-through gradient, which would only reach an encoder, and there is
none; AdamW; each level ends at a plateau (training_loop.py) where GRID distributes a number of steps; dead codes
restart.

Shapes: N items, B of a batch, L levels, K codes of a level, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.codebooks import restored_books, saved_books
from llmrec.tokenizers.shared.kmeans import kmeans_plus_plus, nearest, squared_distances
from llmrec.tokenizers.shared.residual_quantizer import (
    RESTART_EVERY,
    RESTART_UNTIL,
    START_POINTS_PER_CODE,
    ResidualQuantizer,
)
from llmrec.tokenizers.shared.training_loop import Objective, train
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews

BUFFER = 3072  # points among which k-means++ draws the starting codes, as in GRID; more where codes are many


class CodebookObjective(Objective):
    """Quantisation loss of one codebook.

    Args:
        points_ND: (N, D) vectors that it quantises.
        codebook_size: K.
        seed: Of the restarts.
    """

    divides = True

    def __init__(self, points_ND: Tensor, codebook_size: int, seed: int):
        super().__init__()
        self.points, self.generator = points_ND, torch.Generator(points_ND.device).manual_seed(seed)
        self.quantizer = ResidualQuantizer(1, codebook_size, points_ND.shape[1], commitment=0).to(points_ND.device)

    def start(self, generator: torch.Generator) -> None:
        """Draw the codes by k-means++ among a random buffer of points."""
        size = len(self.quantizer.codebooks[0])
        rows = torch.randperm(len(self.points), generator=generator)[: max(BUFFER, START_POINTS_PER_CODE * size)]
        with torch.no_grad():
            buffer_ND = self.points[rows.to(self.points.device)]
            self.quantizer.codebooks[0].copy_(kmeans_plus_plus(buffer_ND, size, generator))

    def running_means(self) -> list[Tensor]:
        return [self.quantizer.usage]

    def loss(self, rows_B: Tensor) -> Tensor:
        """Mean over items of the squared distance to the nearest code."""
        points_BD = self.points[rows_B]
        return self.quantizer(points_BD).loss * points_BD.shape[1]

    def validation_loss(self, rows_B: Tensor) -> Tensor:
        return self.loss(rows_B)

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> None:
        if step % RESTART_EVERY == 0 and progress < RESTART_UNTIL:
            self.quantizer.restart_dead(self.points[rows_B], optimizer, self.generator)


@dataclass
class UnitCodebooks:
    """Residual codebooks of directions: each level scales the residual to unit length before it quantises it.

    Attributes:
        books: Of each level, (K, D).
        lengths: Of each level, the mean length that was divided out in `fit`.
    """

    books: list[Tensor]
    lengths: list[float]

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [len(book_KD) for book_KD in self.books]

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 nearest codes, level after level."""
        left_BD, codes = points_BD, []
        for book_KD in self.books:
            unit_BD = normalize(left_BD, dim=1)
            codes.append(nearest(unit_BD, book_KD)[0])
            left_BD = unit_BD - book_KD[codes[-1]]
        return torch.stack(codes, 1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) sums of codes, each level at the length of the average item."""
        rebuilt_BD = torch.zeros((), device=codes_BL.device)
        for level in reversed(range(len(self.books))):
            rebuilt_BD = (self.books[level][codes_BL[:, level]] + rebuilt_BD) * self.lengths[level]
        return rebuilt_BD

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) squared distances of the last codes to the direction that the given earlier ones leave."""
        unit_BD = normalize(points_BD, dim=1)
        for book_KD, codes_B in zip(self.books[:-1], codes_BL.T, strict=False):
            unit_BD = normalize(unit_BD - book_KD[codes_B], dim=1)
        return squared_distances(unit_BD, self.books[-1])

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return saved_books(self.books)

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"lengths": self.lengths}


@dataclass(kw_only=True)
class RVQ(ItemTokenizer):
    """Residual vector quantisation by gradient."""

    method: ClassVar[str] = "rvq"

    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-4)
    batch_size: int = options.batch_size(1024)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        left_ND, generator = vectors.to_fit(self.codebook_size).to(device), torch.Generator().manual_seed(self.seed)
        codebooks, self.training_log = UnitCodebooks([], []), []
        for level in range(self.num_levels):
            codebooks.lengths.append(float(left_ND.norm(dim=1).mean()))
            objective = CodebookObjective(normalize(left_ND, dim=1), self.codebook_size, self.seed)
            objective.start(generator)
            result = train(objective, len(left_ND), device, self)
            self.training_log.append(result.log)
            codebooks.books.append(objective.quantizer.codebooks[0].detach().clone())
            codes_N = nearest(objective.points, codebooks.books[-1])[0]
            left_ND = objective.points - codebooks.books[-1][codes_N]
            used = codes_N.unique().numel()
            say(f"rvq: level {level}, {result}, uses {used} of {self.codebook_size} codes")
        self.coder = VectorCoder(vectors.dims, codebooks, device, self.view_weights)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        device = resolve_device(self.device)
        books, lengths = restored_books(tensors, [self.codebook_size] * self.num_levels, device), facts["lengths"]
        if len(lengths) != self.num_levels:
            raise ValueError(f"{len(lengths)} lengths for {self.num_levels} levels")
        self.coder = VectorCoder(facts["view_dims"], UnitCodebooks(books, lengths), device, self.view_weights)
