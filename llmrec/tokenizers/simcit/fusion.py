"""Several views of an item as one latent vector: an MLP per view, and attention over their outputs.

    h_m = MLP_m(v_m)        p = softmax_m(w . tanh(U h_m + b))        z = sum_m p_m h_m

U, b and w are shared by the views. A view that misses an item has weight 0 there; an item that no view knows has the
zero vector. Views come side by side, as vectors.py joins them, and a block of zeros is a missing view.

Each view is centred and scaled to one unit per number, so that views of different dimension start at one size.

Source: SimCIT (arXiv:2506.16683) as released, but for the scaling and the starting weights (Xavier normal), which are
not known.

Shapes: B rows, N items, M views, D sum of the view dimensions, V dimension of a view, E latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmrec.tokenizers.shared.autoencoder import LatentNetwork

LEAST_SCALE = 1e-6  # of a view whose vectors are all equal


class Fused(NamedTuple):
    """Latent vectors of items and of their views.

    Attributes:
        latent: (B, E).
        views: (B, M, E) latent vector of each view; meaningless where it is missing.
        shares: (B, M) attention, 0 where a view is missing, else of sum 1.
        known: (B, M) bool.
    """

    latent: Tensor
    views: Tensor
    shares: Tensor
    known: Tensor


def linear(inputs: int, outputs: int, bias: bool, generator: torch.Generator | None) -> nn.Linear:
    """Linear layer with Xavier normal weights and a bias of zeros."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ViewEncoder(nn.Module):
    """Standardisation, and linear layers without bias with SiLU between them."""

    mean: Tensor
    scale: Tensor

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [linear(inputs, outputs, False, generator), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, vectors_NV: Tensor) -> None:
        """Learn mean and scale from the vectors of the items that the view knows; without any they stay."""
        if len(vectors_NV):
            self.mean.copy_(vectors_NV.mean(0))
            self.scale.copy_(1 / (vectors_NV - self.mean).square().mean().sqrt().clamp(min=LEAST_SCALE))

    def forward(self, vectors_BV: Tensor) -> Tensor:
        return self.layers((vectors_BV - self.mean) * self.scale)


class Fusion(LatentNetwork):
    """Encoders of the views, and the attention over them.

    Args:
        dims: V of each view.
        hidden: Hidden layers of each encoder.
        latent_dim: E.
        generator: CPU generator of the starting weights.
    """

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int], latent_dim: int, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.dims = list(dims)
        self.encoders = nn.ModuleList(ViewEncoder([dim, *hidden, latent_dim], generator) for dim in dims)
        self.attention = nn.Sequential(
            linear(latent_dim, latent_dim, True, generator), nn.Tanh(), linear(latent_dim, 1, False, generator)
        )

    def blocks(self, points_BD: Tensor) -> tuple[Tensor, ...]:
        """(B, V) vectors of each view."""
        return points_BD.split(self.dims, dim=1)

    def standardize(self, points_ND: Tensor) -> None:
        """Learn mean and scale of each view."""
        for encoder, block_NV in zip(self.encoders, self.blocks(points_ND), strict=True):
            encoder.standardize(block_NV[block_NV.any(1)])  # type: ignore[operator]  # a ModuleList holds any module

    def forward(self, points_BD: Tensor) -> Fused:
        blocks = self.blocks(points_BD)
        known_BM = torch.stack([block_BV.any(1) for block_BV in blocks], 1)
        views_BME = torch.stack([encoder(block_BV) for encoder, block_BV in zip(self.encoders, blocks, strict=True)], 1)
        scores_BM = self.attention(views_BME)[..., 0].masked_fill(~known_BM, torch.finfo(views_BME.dtype).min)
        shares_BM = scores_BM.softmax(1) * known_BM  # the product is for items that no view knows
        return Fused((shares_BM[..., None] * views_BME).sum(1), views_BME, shares_BM, known_BM)

    def encode(self, points_BD: Tensor) -> Tensor:
        """(B, E) latent vectors."""
        return self(points_BD).latent

    def decode(self, latent_BE: Tensor) -> Tensor:
        """(B, E) themselves: nothing leads from latent vectors back to views."""
        return latent_BE
