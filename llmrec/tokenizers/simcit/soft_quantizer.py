"""Residual quantiser whose levels are mixtures of all codes while it anneals, and codes with their gradient afterwards.

The weights of a level's codes are softmax((s + eta g) / T) over negative squared distances s and Gumbel noise g; what
the mixture leaves is quantised by the next level. Temperature T and noise scale eta are annealed apart: the largest of
(s + g) / T does not depend on T, so that lowering T alone never removes the noise.

Distances are relative: each vector's are divided by their standard deviation over the codes. The loss that trains them
looks at angles alone and leaves the scale of vectors and codes free, so that with distances as they are, training
answers a lower T by smaller vectors: mixtures stay soft, and the nearest codes, which are exported, come to mean
nothing. Dividing by the dimension instead would keep the scale free, and drown the distances in the noise.

Hardness goes from 0 to 1 when annealing ends: the forward pass then has the heaviest code of each level instead of the
mixture, and the backward pass has the gradient of the mixture still (straight-through). Soft mixtures gain nothing any
more, and without noise what is trained is what is exported.

Source: SimCIT (arXiv:2506.16683) as released; relative distances, the noise scale, hard codes and the k-means start are
ours.

Shapes: B rows, N items, L levels, K codes of a level, E latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from llmrec.tokenizers.shared.kmeans import kmeans, nearest, squared_distances

Law = Literal["exponential", "linear", "constant"]
START_POINTS, START_ITERATIONS = 16384, 25  # of k-means
LEAST_VARIANCE = 1e-12  # of distances: at 0 the square root has no gradient


class Mixtures(NamedTuple):
    """Latent vectors as mixtures of codes.

    Attributes:
        prefixes: (B, L, E) sum of the mixtures up to each level; the last is what all codes stand for.
        scores: Of each level, (B, K) negative squared distances, in the units of the quantiser.
        weights: Of each level, (B, K) share of each code in the mixture; 1 and 0 once codes are hard.
    """

    prefixes: Tensor
    scores: list[Tensor]
    weights: list[Tensor]


class Annealing(NamedTuple):
    """A number that goes from `start` to `end` by a law; a constant one stays at `start`."""

    law: Law
    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """Value after a number of steps."""
        part = min(1.0, step / self.steps)
        if self.law == "exponential":
            return self.start * (self.end / self.start) ** part
        return self.start + (self.end - self.start) * part if self.law == "linear" else self.start


class SoftQuantizer(nn.Module):
    """Codebooks whose levels are mixtures of codes; temperature, noise and hardness are buffers, kept with the weights.

    Args:
        num_levels: L.
        codebook_size: K.
        dim: E.
        generator: CPU generator of the starting codes.
        relative: Measure the distances of a vector in units of their standard deviation over the codes.
    """

    temperature: Tensor
    noise: Tensor
    hardness: Tensor

    def __init__(self, num_levels: int, codebook_size: int, dim: int, generator: torch.Generator, relative: bool):
        super().__init__()
        self.relative = relative
        books = torch.rand(num_levels, codebook_size, dim, generator=generator)
        self.codebooks = nn.ParameterList(books.unbind())
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("noise", torch.zeros(()))
        self.register_buffer("hardness", torch.zeros(()))

    @torch.no_grad()
    def start(self, latent_NE: Tensor, generator: torch.Generator) -> None:
        """Set the codebooks by k-means on the residuals of each level."""
        rows = torch.randperm(len(latent_NE), generator=generator)[:START_POINTS]
        left_NE = latent_NE[rows.to(latent_NE.device)]
        for codebook_KE in self.codebooks:
            codebook_KE.copy_(kmeans(left_NE, len(codebook_KE), START_ITERATIONS, generator))
            left_NE = left_NE - codebook_KE[nearest(left_NE, codebook_KE)[0]]

    def draw(self, num_rows: int, generator: torch.Generator) -> list[Tensor]:
        """Draw Gumbel noise for each level, (num_rows, K), on the device of the generator and the codebooks."""
        return [gumbel(num_rows, codebook_KE, generator) for codebook_KE in self.codebooks]

    def forward(self, latent_BE: Tensor, noise: Sequence[Tensor] = ()) -> Mixtures:
        """Quantise, with the noise of `draw` where it is given."""
        left_BE, prefixes, scores, weights = latent_BE, [], [], []
        for level, codebook_KE in enumerate(self.codebooks):
            distances_BK = squared_distances(left_BE, codebook_KE)
            scores.append(-distances_BK / spread(distances_BK) if self.relative else -distances_BK)
            logits_BK = scores[-1] + self.noise * noise[level] if noise else scores[-1]
            shares_BK = (logits_BK / self.temperature).softmax(1)
            heaviest_BK = torch.zeros_like(shares_BK).scatter_(1, shares_BK.argmax(1, keepdim=True), 1)
            # A product, because a branch would wait for the device; at hardness 0 it adds an exact zero.
            weights.append(shares_BK + self.hardness * (heaviest_BK - shares_BK).detach())
            left_BE = left_BE - weights[-1] @ codebook_KE
            prefixes.append(latent_BE - left_BE)
        return Mixtures(torch.stack(prefixes, 1), scores, weights)

    def hard(self, latent_BE: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, E) sums of nearest codes up to each level, and (B, L) these codes, as they are exported."""
        left_BE, prefixes, codes = latent_BE, [], []
        for codebook_KE in self.codebooks:
            codes.append(nearest(left_BE, codebook_KE)[0])
            left_BE = left_BE - codebook_KE[codes[-1]]
            prefixes.append(latent_BE - left_BE)
        return torch.stack(prefixes, 1), torch.stack(codes, 1)

    def similarity(self) -> Tensor:
        """Mean cosine of two different codes of a level."""
        books_LKE = normalize(torch.stack(list(self.codebooks)), dim=2)
        size = books_LKE.shape[1]
        return ((books_LKE.sum(1).square().sum(1) - size) / (size * (size - 1))).mean()


def spread(distances_BK: Tensor) -> Tensor:
    """(B, 1) standard deviation over codes, above 0."""
    return (distances_BK.var(1, correction=0, keepdim=True) + LEAST_VARIANCE).sqrt()


def gumbel(num_rows: int, codebook_KE: Tensor, generator: torch.Generator) -> Tensor:
    """(num_rows, K) in the type of a codebook."""
    waits = codebook_KE.new_empty(num_rows, len(codebook_KE)).exponential_(generator=generator)
    return -waits.clamp_(min=torch.finfo(waits.dtype).tiny).log()
