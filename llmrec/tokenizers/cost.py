"""CoST: an RQ-VAE whose codes tell items apart, instead of rebuilding their vectors number by number.

The reconstruction loss gives way to a contrast within the batch: by cosine, the decoded vector of an item must be
nearer to the item's own vector than those of the others are.

Source: CoST (arXiv:2404.14774); there is no official code, and its sizes and the statement that the levels share one
codebook reached us second-hand. Departures: pairs of all but equal vectors do not count as negatives; AdamW, dead codes
and the plateau as for rq_vae; the paper says nothing of batch and epochs.

Shapes: B rows, D dimension of the vectors, E latent dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

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
from llmrec.tokenizers.shared.residual_quantizer import Quantized, ResidualQuantizer
from llmrec.views import ItemViews

DUPLICATE = 0.99  # cosine above which two items are one, in the eyes of the contrast


def contrastive_loss(points_BD: Tensor, rebuilt_BD: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each vector's own reconstruction among those of the batch.

    Args:
        points_BD: (B, D) vectors.
        rebuilt_BD: (B, D) their reconstructions.
        temperature: Divides the cosines.

    Returns:
        Scalar. Another row's reconstruction is no candidate where the two rows' vectors have a cosine above .99.

    Source: CoST (arXiv:2404.14774), its contrastive loss; the exception is ours.
    """
    points_BD = normalize(points_BD, dim=1)
    logits_BB = points_BD @ normalize(rebuilt_BD, dim=1).T / temperature
    same_BB = (points_BD @ points_BD.T > DUPLICATE).fill_diagonal_(False)
    own_B = torch.arange(len(points_BD), device=points_BD.device)
    return cross_entropy(logits_BB.masked_fill(same_BB, -torch.inf), own_B)


class CoSTObjective(AutoencoderObjective):
    """Contrast of the decoded vectors, with or without their reconstruction loss.

    Args:
        points_ND: (N, D) vectors of the items, on one device.
        network: On this device.
        quantizer: On this device.
        options: Weights, temperature and seed.
    """

    divides = False  # items are compared with the others of their batch

    def __init__(self, points_ND: Tensor, network: Autoencoder, quantizer: ResidualQuantizer, options: CoST):
        super().__init__(points_ND, network, quantizer, options.seed)
        self.options = options

    def main_loss(self, points_BD: Tensor, quantized: Quantized, rows_B: Tensor) -> Tensor:
        rebuilt_BD = self.network.decode(quantized.vector)
        loss = self.options.alpha * contrastive_loss(points_BD, rebuilt_BD, self.options.temperature)
        return loss + super().main_loss(points_BD, quantized, rows_B) if self.options.reconstruction else loss


@dataclass(kw_only=True)
class CoST(ItemTokenizer):
    """RQ-VAE trained by contrast."""

    method: ClassVar[str] = "cost"
    renamed: ClassVar[dict[str, str]] = {
        "ste": "removed: the gradient passes each level; the paper gives no choice.",
        "sinkhorn_epsilon": "removed: the paper has no Sinkhorn assignment.",
    }

    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(64)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-4)
    batch_size: int = options.batch_size(1024)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([512, 256, 128])
    commitment: float = options.commitment(0.25)
    latent_dim: int = options.latent_dim(96)
    shared_codebook: bool = option("Use one codebook for all levels, as the authors are said to do.", True)
    alpha: float = option("Weight of the contrastive loss.", 0.1, above=0)
    temperature: float = option("Temperature that divides the cosines of the contrastive loss.", 0.1, above=0)
    reconstruction: bool = option("Keep the reconstruction loss in addition to the contrastive one.", False)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def objective(self, points_ND: Tensor, generator: torch.Generator) -> CoSTObjective:
        """The loss that is trained, with its parameters at their start.

        Args:
            points_ND: (N, D) on the device.
            generator: CPU generator of the starting weights and codes.
        """
        network = Autoencoder(points_ND.shape[1], self.encoder_layers, self.latent_dim, generator)
        quantizer = ResidualQuantizer(
            self.num_levels, self.codebook_size, self.latent_dim, self.commitment, shared=self.shared_codebook
        )
        return CoSTObjective(points_ND, *start_from_kmeans(network, quantizer, points_ND, generator), self)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder, self.training_log = fit_autoencoder(self, catalog, views)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims = facts["view_dims"]
        network = Autoencoder(sum(dims.values()), self.encoder_layers, self.latent_dim)
        self.coder = restored_coder(self, tensors, dims, network)
