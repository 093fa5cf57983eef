"""FSQ: an autoencoder whose latent numbers are each rounded to one of a few values.

There is no codebook to learn, to collapse or to restart: each latent dimension is bounded by a tanh and rounded to one
of `sizes` values, and a level's code is the combination that its dimensions take. As no level refines another, their
order has no meaning. In the terms of vectors.py a level's codebook is the grid of its own dimensions, with zeros in
those of the other levels.

Source: Finite Scalar Quantization (arXiv:2309.15505). Departures: an item has several codes, each of `sizes` dimensions
of its own, where the paper has one code per image patch; the tanh is shifted by atanh, so that 0 stays 0 for even sizes
(the paper's code has tan, which is close); training ends at a plateau (plateau.py).

Shapes: N items, B rows, L levels, S dimensions of a level, E = L x S latent dimensions, K codes of a level, D dimension
of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from llmrec.configs.options import option
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.tokenizers.shared.autoencoder import Autoencoder, NetworkTokenizer
from llmrec.tokenizers.shared.training_loop import Objective
from llmrec.tokenizers.shared.vectors import require_distinct

# By which the tanh reaches past the outermost values, as in the paper's code; else none would round there.
MARGIN = 1e-3


class Rounding(Objective):
    """Autoencoder with rounded latent vectors, trained on vectors (N, D) of one device."""

    def __init__(self, points_ND: Tensor, network: Autoencoder, sizes_E: Tensor):
        super().__init__()
        self.points, self.network, self.sizes_E = points_ND, network, sizes_E

    def loss(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        latent_BE = bounded(self.network.encode(points_BD), self.sizes_E)
        passed_BE = latent_BE + (latent_BE.round() - latent_BE).detach()
        rebuilt_BD = self.network.decode(passed_BE / (self.sizes_E // 2))
        return mse_loss(rebuilt_BD, points_BD) * self.network.scale**2

    judge = loss  # there is nothing random in it


@dataclass(kw_only=True)
class FSQ(NetworkTokenizer):
    """Finite scalar quantisation."""

    method: ClassVar[str] = "fsq"

    codebook_size: int = option("Codes per level: the product of `sizes`.", 240, least=2)
    # The paper's for about 2^8 codes; 8 5 5 5 for 2^10, 7 5 5 5 5 for 2^12.
    sizes: list[int] = option("Values that each latent dimension of a level is rounded to.", [8, 6, 5])

    def problems(self) -> list[str]:
        problems = super().problems()
        if not self.sizes or min(self.sizes) < 2:
            problems.append(f"sizes is {self.sizes}; give numbers above 1")
        elif math.prod(self.sizes) != self.codebook_size:
            problems.append(
                f"sizes {self.sizes} make {math.prod(self.sizes)} codes and codebook_size is {self.codebook_size}; "
                f"set codebook_size to {math.prod(self.sizes)}, or choose other sizes"
            )
        return problems

    @property
    def latent_sizes(self) -> Tensor:
        """(E,) values of each latent dimension."""
        return torch.tensor(self.sizes * self.num_levels, device=resolve_device(self.device))

    def learn(self, points_ND: Tensor) -> None:
        require_distinct(points_ND, 2)
        device, generator = resolve_device(self.device), torch.Generator().manual_seed(self.seed)
        points_ND = points_ND.to(device)
        network = Autoencoder(points_ND.shape[1], self.encoder_layers, len(self.latent_sizes), generator).to(device)
        network.standardize(points_ND)
        training = self.train(Rounding(points_ND, network, self.latent_sizes), len(points_ND), device)
        self.network = network.requires_grad_(False)
        self.codebooks = grids(self.sizes, self.num_levels, device)
        judged = f"loss on {training.held_out} held-out items" if training.held_out else "training loss"
        say(f"fsq: {training.epochs:.0f} epochs, {judged} {training.loss:.4f}")

    def latent(self, points_BD: Tensor) -> Tensor:
        return bounded(self.network.encode(points_BD), self.latent_sizes) / (self.latent_sizes // 2)


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
