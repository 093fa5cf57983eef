"""FSQ: an autoencoder whose latent numbers are each rounded to one of a few values.

There is no codebook to learn, to collapse or to restart: each latent dimension is bounded by a tanh and rounded to one
of `sizes` values, and a level's code is the combination that its dimensions take. As no level refines another, their
order has no meaning. In the terms of codebooks.py a level's codebook is the grid of its own dimensions, with zeros in
those of the other levels.

Source: Finite Scalar Quantization (arXiv:2309.15505). Departures: an item has several codes, each of `sizes` dimensions
of its own, where the paper has one code per image patch; the tanh is shifted by atanh, so that 0 stays 0 for even sizes
(the paper's code has tan, which is close); training ends at a plateau (training_loop.py).

Shapes: N items, B rows, L levels, S dimensions of a level, E = L x S latent dimensions, K codes of a level, D dimension
of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import Autoencoder, LatentCodebooks
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.training_loop import Objective, train
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews

# By which the tanh reaches past the outermost values, as in the paper's code; else none would round there.
MARGIN = 1e-3


class BoundedAutoencoder(Autoencoder):
    """Autoencoder whose latent numbers are bounded, so that each rounds to one of a few values.

    Args:
        dim: D.
        hidden: Sizes of the hidden layers of the encoder.
        sizes: Values of each latent dimension.
        generator: CPU generator of the starting weights.
    """

    sizes_E: Tensor

    def __init__(self, dim: int, hidden: Sequence[int], sizes: Sequence[int], generator: torch.Generator | None = None):
        super().__init__(dim, hidden, len(sizes), generator)
        self.register_buffer("sizes_E", torch.tensor(sizes), persistent=False)

    def bounded(self, points_BD: Tensor) -> Tensor:
        """(B, E) latent numbers, whose rounded values are the codes."""
        return bounded(super().encode(points_BD), self.sizes_E)

    def encode(self, points_BD: Tensor) -> Tensor:
        """(B, E) latent numbers between -1 and 1, as `grids` has them."""
        return self.bounded(points_BD) / (self.sizes_E // 2)


class FSQObjective(Objective):
    """Reconstruction of the vectors (N, D) of one device from rounded latent numbers."""

    divides = True

    def __init__(self, points_ND: Tensor, network: BoundedAutoencoder):
        super().__init__()
        self.points, self.network = points_ND, network

    def loss(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        latent_BE = self.network.bounded(points_BD)
        passed_BE = latent_BE + (latent_BE.round() - latent_BE).detach()
        rebuilt_BD = self.network.decode(passed_BE / (self.network.sizes_E // 2))
        return self.network.reconstruction_loss(points_BD, rebuilt_BD)

    validation_loss = loss  # there is nothing random in it


@dataclass(kw_only=True)
class FSQ(ItemTokenizer):
    """Finite scalar quantisation."""

    method: ClassVar[str] = "fsq"
    renamed: ClassVar[dict[str, str]] = {"codebook_size": "removed: it is the product of sizes."}

    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-4)
    batch_size: int = options.batch_size(1024)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([512, 256, 128])
    # The paper's for about 2^8 codes; 8 5 5 5 for 2^10, 7 5 5 5 5 for 2^12.
    sizes: list[int] = option(
        "Number of values that each latent dimension of a level is rounded to; their product is the number of codes.",
        [8, 6, 5],
        least=2,
    )

    def problems(self) -> list[str]:
        return [] if self.sizes else ["sizes is []; give numbers above 1"]

    def planned_sizes(self, num_items: int) -> list[int]:
        return [math.prod(self.sizes)] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        points_ND, generator = vectors.to_fit(2).to(device), torch.Generator().manual_seed(self.seed)
        latent_sizes = self.sizes * self.num_levels
        network = BoundedAutoencoder(points_ND.shape[1], self.encoder_layers, latent_sizes, generator).to(device)
        network.standardize(points_ND)
        result = train(FSQObjective(points_ND, network), len(points_ND), device, self)
        say(f"fsq: {result}")
        books = ResidualCodebooks(grids(self.sizes, self.num_levels, device))
        codebooks = LatentCodebooks(network.requires_grad_(False), books)
        self.coder, self.training_log = VectorCoder(vectors.dims, codebooks, device, self.view_weights), [result.log]
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims, device = facts["view_dims"], resolve_device(self.device)
        network = BoundedAutoencoder(sum(dims.values()), self.encoder_layers, self.sizes * self.num_levels)
        codebooks = LatentCodebooks.restored(tensors, [math.prod(self.sizes)] * self.num_levels, network, device)
        self.coder = VectorCoder(dims, codebooks, device, self.view_weights)


def bounded(latent_BE: Tensor, sizes_E: Tensor) -> Tensor:
    """Squash each dimension so that rounding gives one of its number of values, -(size // 2) and up; 0 stays 0."""
    half_E = (sizes_E - 1) * (1 + MARGIN) / 2
    offset_E = torch.where(sizes_E % 2 == 0, 0.5, 0.0)
    return torch.tanh(latent_BE + torch.atanh(offset_E / half_E)) * half_E - offset_E


def grids(sizes: Sequence[int], num_levels: int, device: torch.device) -> list[Tensor]:
    """L codebooks (K, E): all combinations of values in a level's own dimensions, between -1 and 1, zeros elsewhere."""
    values = [(torch.arange(size, device=device) - size // 2) / (size // 2) for size in sizes]
    grid_KS = torch.stack(torch.meshgrid(*values, indexing="ij"), dim=-1).reshape(-1, len(sizes))
    books = torch.zeros(num_levels, len(grid_KS), num_levels, len(sizes), device=device)
    for level in range(num_levels):
        books[level, :, level] = grid_KS
    return list(books.flatten(2))
