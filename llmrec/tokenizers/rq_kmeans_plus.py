"""RQ-KMeans+: codebooks of RQ-KMeans, fine-tuned as an RQ-VAE whose encoder begins as the identity.

The encoder is residual, z = x + MLP(x), with zeros in its last layer, so that before training the codes are those of
RQ-KMeans. The decoder begins at random, as in the code. With one that begins as the identity, too, fine-tuning only
moves away from RQ-KMeans: on Beauty the held-out loss rises from .517 to .704 in 800 steps of 256 items, while the
latent vectors become 2.3 times as long, as the straight-through gradient wants them against commitment .25.

Source: MiniOneRec (arXiv:2510.24431), official code rqkmeans_plus.py. Departures: training ends at a plateau
(plateau.py) where the code has 5,000 epochs; vectors are scaled to about one unit per number; the default layers are
TIGER's (the code has 2048 … 64 for vectors of 2,560). Dead codes do not restart, as in the code: at this learning rate
they settle too slowly (Beauty, held-out loss after 900 steps of 1,024 items: .676 with restarts, .637 without).

Shapes: N items, B rows, D dimension of the vectors, which is the latent one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from llmrec.configs.options import option
from llmrec.tokenizers.rq_kmeans import RQKMeans
from llmrec.tokenizers.shared.autoencoder import Autoencoder, AutoencoderTokenizer, Autoencoding


class ResidualAutoencoder(Autoencoder):
    """An encoder that is the identity at the start, up to a scale."""

    def __init__(self, dim: int, hidden: Sequence[int], generator: torch.Generator | None = None):
        super().__init__(dim, hidden, dim, generator)
        nn.init.zeros_(self.encoder[-1].weight)

    def standardize(self, points_ND: Tensor) -> None:
        """Learn the scale alone, as a power of two: it changes no digit, and so no code of RQ-KMeans."""
        self.scale.copy_(2 ** -points_ND.square().mean().sqrt().log2().round())

    def encode(self, points_BD: Tensor) -> Tensor:
        points_BD = points_BD * self.scale
        return points_BD + self.encoder(points_BD)

    def decode(self, latent_BE: Tensor) -> Tensor:
        return self.decoder(latent_BE) / self.scale


class FineTuning(Autoencoding):
    """Autoencoding without restarts."""

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, nearness: float) -> None:
        pass


@dataclass(kw_only=True)
class RQKMeansPlus(AutoencoderTokenizer):
    """RQ-KMeans, fine-tuned."""

    method: ClassVar[str] = "rq_kmeans_plus"

    iterations: int = option("k-means iterations per level.", 25, least=1)
    learning_rate: float = option("Of AdamW, constant.", 1e-4, above=0)
    weight_decay: float = option("Of AdamW.", 0.0, least=0)
    batch_size: int = option("Items of a training step.", 2048, least=1)

    def learner(self, points_ND: Tensor, generator: torch.Generator) -> Autoencoding:
        start = RQKMeans(
            num_levels=self.num_levels,
            codebook_size=self.codebook_size,
            iterations=self.iterations,
            seed=self.seed,
            device=self.device,
        )
        start.learn(points_ND.cpu())
        dim = points_ND.shape[1]
        network = ResidualAutoencoder(dim, self.encoder_layers, generator).to(points_ND.device)
        network.standardize(points_ND)
        quantizer = self.quantizer(dim).to(points_ND.device)
        with torch.no_grad():
            for codebook_KD, found_KD in zip(quantizer.codebooks, start.codebooks, strict=True):
                codebook_KD.copy_(found_KD.to(points_ND.device) * network.scale)
        return FineTuning(points_ND, network, quantizer, self.seed)

    def empty_network(self, dim: int, latent_dim: int) -> Autoencoder:
        return ResidualAutoencoder(dim, self.encoder_layers)
