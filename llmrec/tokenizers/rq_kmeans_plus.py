"""RQ-KMeans+: codebooks of RQ-KMeans, fine-tuned as an RQ-VAE whose encoder begins as the identity.

The encoder is residual, z = x + MLP(x), with zeros in its last layer, so that before training the codes are those of
RQ-KMeans. The decoder begins at random, as in the code. With one that begins as the identity, too, fine-tuning only
moves away from RQ-KMeans: on Beauty the held-out loss rises from .517 to .704 in 800 steps of 256 items, while the
latent vectors become 2.3 times as long, as the straight-through gradient wants them against commitment .25.

Source: MiniOneRec (arXiv:2510.24431), official code rqkmeans_plus.py. Departures: training ends at a plateau
(training_loop.py) where the code has 5,000 epochs; vectors are scaled to about one unit per number; the default layers
are TIGER's (the code has 2048 … 64 for vectors of 2,560). Dead codes do not restart, as in the code: at this learning
rate they settle too slowly (Beauty, held-out loss after 900 steps of 1,024 items: .676 with restarts, .637 without).

Shapes: N items, B of a batch, D dimension of the vectors, which is the latent one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.rq_kmeans import residual_kmeans
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import (
    Autoencoder,
    AutoencoderObjective,
    fit_autoencoder,
    restored_coder,
)
from llmrec.tokenizers.shared.residual_quantizer import ResidualQuantizer
from llmrec.views import ItemViews


class ResidualAutoencoder(Autoencoder):
    """Autoencoder whose encoder is the identity at the start, up to a scale."""

    def __init__(self, dim: int, hidden: Sequence[int], generator: torch.Generator | None = None):
        super().__init__(dim, hidden, dim, generator)
        nn.init.zeros_(self.encoder[-1].get_parameter("weight"))

    def standardize(self, points_ND: Tensor) -> None:
        """Learn the scale alone, as a power of two: it changes no digit, and so no code of RQ-KMeans."""
        self.scale.copy_(2 ** -points_ND.square().mean().sqrt().log2().round())

    def encode(self, points_BD: Tensor) -> Tensor:
        points_BD = points_BD * self.scale
        return points_BD + self.encoder(points_BD)

    def decode(self, latent_BE: Tensor) -> Tensor:
        return self.decoder(latent_BE) / self.scale


@dataclass(kw_only=True)
class RQKMeansPlus(ItemTokenizer):
    """RQ-KMeans, fine-tuned."""

    method: ClassVar[str] = "rq_kmeans_plus"
    renamed: ClassVar[dict[str, str]] = {
        "ste": "removed: the gradient passes each level, as in the released code.",
        "sinkhorn_epsilon": "removed: the released code has no Sinkhorn assignment.",
    }

    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)
    learning_rate: float = options.learning_rate(1e-4)
    weight_decay: float = options.weight_decay(0.0)
    batch_size: int = options.batch_size(2048)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([512, 256, 128])
    commitment: float = options.commitment(0.25)
    iterations: int = options.kmeans_iterations(25)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def objective(self, points_ND: Tensor, generator: torch.Generator) -> AutoencoderObjective:
        """The loss that is trained, with its parameters at their start.

        Args:
            points_ND: (N, D) on the device.
            generator: CPU generator of the starting weights.
        """
        found, _ = residual_kmeans(points_ND, self.num_levels, self.codebook_size, self.iterations, self.seed)
        dim = points_ND.shape[1]
        network = ResidualAutoencoder(dim, self.encoder_layers, generator).to(points_ND.device)
        network.standardize(points_ND)
        quantizer = ResidualQuantizer(self.num_levels, self.codebook_size, dim, self.commitment).to(points_ND.device)
        with torch.no_grad():
            for codebook_KD, found_KD in zip(quantizer.codebooks, found.books, strict=True):
                codebook_KD.copy_(found_KD * network.scale)
        return AutoencoderObjective(points_ND, network, quantizer, self.seed, restarts=False)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder, self.training_log = fit_autoencoder(self, catalog, views)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims = facts["view_dims"]
        network = ResidualAutoencoder(sum(dims.values()), self.encoder_layers)
        self.coder = restored_coder(self, tensors, dims, network)
