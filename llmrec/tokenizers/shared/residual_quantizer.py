"""Residual quantiser with a gradient: nearest codes, straight-through estimation, k-means start, restart of dead codes.

Each level quantises the residual that the levels before leave of a latent vector. The loss is, per level and averaged
over levels and dimensions as in the code that LC-Rec, LETTER and MiniOneRec share,

    |sg(left) - code|^2 + commitment |left - sg(code)|^2

Two straight-through estimators:
per_level   the gradient passes each level before its code is subtracted, as in the released code. Residuals have no
            gradient then: of all commitment terms, only the first reaches the encoder.
sum         codes are subtracted as constants and the gradient passes the sum of codes once, as the papers write it.

Departures: k-means starts each level from up to START_POINTS latent vectors, where TIGER has the first batch; codes
that nothing uses move to a random residual (FORGE restarts them too; the shared code does not).

Shapes: B vectors, N items, L levels, K codes of a level, E latent dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmrec.tokenizers.shared.balanced import sinkhorn
from llmrec.tokenizers.shared.kmeans import kmeans, nearest, squared_distances

START_POINTS, START_POINTS_PER_CODE, START_ITERATIONS = 4096, 16, 25
USAGE_DECAY = 0.99  # of the running share of rows that use a code
DEAD = 0.03  # a code used less than this part of even use is dead
RESTART_EVERY, RESTART_UNTIL = 200, 0.8  # steps, and the part of training after which semantic IDs shall settle
RESTART_NOISE = 0.01  # of the standard deviation of the residuals


class Quantized(NamedTuple):
    """Quantised latent vectors, with gradients.

    Attributes:
        vector: (B, E) sum of the codes, whose gradient passes straight through to the latent vectors.
        codes: (B, L) int64.
        loss: Codebook and commitment loss, a scalar.
    """

    vector: Tensor
    codes: Tensor
    loss: Tensor


class ResidualQuantizer(nn.Module):
    """Trainable codebooks.

    Args:
        num_levels: L.
        codebook_size: K.
        dim: E.
        commitment: Weight of the commitment term.
        ste: per_level or sum.
        sinkhorn_epsilon: In training, the last level's codes are assigned evenly with this epsilon; 0 takes the
            nearest there too.
        shared: Whether all levels use one codebook.
    """

    usage: Tensor

    def __init__(
        self,
        num_levels: int,
        codebook_size: int,
        dim: int,
        commitment: float = 0.25,
        ste: str = "per_level",
        sinkhorn_epsilon: float = 0.0,
        shared: bool = False,
    ):
        super().__init__()
        books = 1 if shared else num_levels
        self.num_levels, self.commitment, self.ste = num_levels, commitment, ste
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.codebooks = nn.ParameterList(torch.zeros(codebook_size, dim) for _ in range(books))
        self.register_buffer("usage", torch.ones(books, codebook_size))  # 1 is even use

    @property
    def levels(self) -> list[Tensor]:
        """(K, E) codebook of each level; one and the same where they share it."""
        return [self.codebooks[level % len(self.codebooks)] for level in range(self.num_levels)]

    @torch.no_grad()
    def start(self, latent_NE: Tensor, generator: torch.Generator) -> None:
        """Set the codebooks by k-means on the residuals of each level; a shared one on those of all levels together.

        Args:
            latent_NE: (N, E), N at least K.
            generator: CPU generator.
        """
        size = len(self.codebooks[0])
        count = min(len(latent_NE), max(START_POINTS, START_POINTS_PER_CODE * size))
        rows = torch.randperm(len(latent_NE), generator=generator)[:count]
        left_NE, inputs = latent_NE[rows.to(latent_NE.device)], []
        for level in range(self.num_levels):
            inputs.append(left_NE)
            found_KE = kmeans(left_NE, size, START_ITERATIONS, generator)
            left_NE = left_NE - found_KE[nearest(left_NE, found_KE)[0]]
            self.levels[level].copy_(found_KE)
        if len(self.codebooks) < self.num_levels:
            self.codebooks[0].copy_(kmeans(torch.cat(inputs), size, START_ITERATIONS, generator))

    def forward(self, latent_BE: Tensor) -> Quantized:
        left_BE, total_BE, codes, loss = latent_BE, torch.zeros_like(latent_BE), [], latent_BE.new_zeros(())
        for level, codebook_KE in enumerate(self.levels):
            codes.append(self._assign(left_BE.detach(), level))
            # By a product: the gradient of a lookup is summed in no fixed order on a GPU.
            one_hot_BK = torch.zeros(len(left_BE), len(codebook_KE), device=left_BE.device)
            one_hot_BK.scatter_(1, codes[-1][:, None], 1)
            code_BE = one_hot_BK @ codebook_KE
            loss = loss + mse_loss(code_BE, left_BE.detach()) + self.commitment * mse_loss(left_BE, code_BE.detach())
            passed_BE = left_BE + (code_BE - left_BE).detach() if self.ste == "per_level" else code_BE.detach()
            total_BE, left_BE = total_BE + passed_BE, left_BE - passed_BE
            if self.training:
                self._count(level, one_hot_BK)
        if self.ste == "sum":
            total_BE = latent_BE + (total_BE - latent_BE).detach()
        return Quantized(total_BE, torch.stack(codes, 1), loss / self.num_levels)

    @torch.no_grad()
    def _assign(self, left_BE: Tensor, level: int) -> Tensor:
        """(B,) codes of one level."""
        codebook_KE = self.levels[level]
        if self.training and self.sinkhorn_epsilon and level == self.num_levels - 1:
            cost_1BK = squared_distances(left_BE, codebook_KE)[None]
            return sinkhorn(cost_1BK, self.sinkhorn_epsilon)[0].argmax(1)
        return nearest(left_BE, codebook_KE)[0]

    @torch.no_grad()
    def _count(self, level: int, one_hot_BK: Tensor) -> None:
        even_use_K = one_hot_BK.mean(0) * one_hot_BK.shape[1]
        self.usage[level % len(self.codebooks)].lerp_(even_use_K, 1 - USAGE_DECAY)

    @torch.no_grad()
    def restart_dead(self, latent_BE: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Move dead codes to the neighbourhood of random residuals of a batch, and reset their optimiser state.

        A code that has moved counts as evenly used, so that it has more than RESTART_EVERY steps to attract vectors.
        """
        left_BE, inputs = latent_BE, []
        for codebook_KE in self.levels:
            inputs.append(left_BE)
            left_BE = left_BE - codebook_KE[nearest(left_BE, codebook_KE)[0]]
        for book, codebook_KE in enumerate(self.codebooks):
            pool_BE = torch.cat(inputs[book :: len(self.codebooks)])
            dead_K1 = self.usage[book][:, None] < DEAD
            rows_K = torch.randint(len(pool_BE), (len(codebook_KE),), generator=generator, device=pool_BE.device)
            noise_KE = torch.randn(codebook_KE.shape, generator=generator, device=pool_BE.device)
            drawn_KE = pool_BE[rows_K] + RESTART_NOISE * pool_BE.std() * noise_KE
            codebook_KE.copy_(torch.where(dead_K1, drawn_KE, codebook_KE))
            for moment in optimizer.state[codebook_KE].values():
                if moment.shape == codebook_KE.shape:
                    moment.masked_fill_(dead_K1, 0)
            self.usage[book].masked_fill_(dead_K1[:, 0], 1)
