"""RQ-VAE: an autoencoder whose latent vector is quantised level after level.

Sources: TIGER (arXiv:2305.05065), whose sizes are the defaults; LC-Rec (arXiv:2311.09049), whose options are num_levels
4, encoder_layers 2048 1024 512 256 128 64 (for LLaMA's vectors of 4,096) and sinkhorn_epsilon .003. Departures: AdamW
1e-3 with decay 1e-4, as in LC-Rec's code, where TIGER has Adagrad with .4; training ends at a plateau
(training_loop.py), where TIGER has 20,000 epochs and LC-Rec 10,000; dead codes restart, and k-means starts the
codebooks from more than one batch (residual_quantizer.py).

Shapes: N items, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import (
    Autoencoder,
    AutoencoderObjective,
    fit_autoencoder,
    restored_coder,
    start_from_kmeans,
)
from llmrec.tokenizers.shared.residual_quantizer import ResidualQuantizer
from llmrec.views import ItemViews


@dataclass(kw_only=True)
class RQVAE(ItemTokenizer):
    """Residual-quantised autoencoder."""

    method: ClassVar[str] = "rq_vae"

    # Sizes and batch are TIGER's, the optimiser is that of LC-Rec's code, max_epochs and patience are ours.
    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-4)
    batch_size: int = options.batch_size(1024)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([512, 256, 128])
    commitment: float = options.commitment(0.25)
    ste: options.StraightThrough = option(
        "Straight-through gradient: per_level passes it at each level, as released code does; sum passes it once, "
        "through the sum of the codes, as the papers write it.",
        "per_level",
    )
    sinkhorn_epsilon: float = options.sinkhorn_epsilon(0.0)
    latent_dim: int = options.latent_dim(32)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def objective(self, points_ND: Tensor, generator: torch.Generator) -> AutoencoderObjective:
        """The loss that is trained, with its parameters at their start.

        Args:
            points_ND: (N, D) on the device.
            generator: CPU generator of the starting weights and codes.
        """
        network = Autoencoder(points_ND.shape[1], self.encoder_layers, self.latent_dim, generator)
        quantizer = ResidualQuantizer(
            self.num_levels, self.codebook_size, self.latent_dim, self.commitment, self.ste, self.sinkhorn_epsilon
        )
        return AutoencoderObjective(points_ND, *start_from_kmeans(network, quantizer, points_ND, generator), self.seed)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder, self.training_log = fit_autoencoder(self, catalog, views)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims = facts["view_dims"]
        network = Autoencoder(sum(dims.values()), self.encoder_layers, self.latent_dim)
        self.coder = restored_coder(self, tensors, dims, network)
