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
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from llmrec.configs.options import option
from llmrec.tokenizers.shared.autoencoder import Autoencoder, AutoencoderTokenizer, Autoencoding
from llmrec.tokenizers.shared.residual_quantizer import Quantized, ResidualQuantizer

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


class Contrasting(Autoencoding):
    """Autoencoding, judged by contrast."""

    def __init__(
        self,
        points_ND: Tensor,
        network: Autoencoder,
        quantizer: ResidualQuantizer,
        seed: int,
        alpha: float,
        temperature: float,
        reconstruction: bool,
    ):
        super().__init__(points_ND, network, quantizer, seed)
        self.alpha, self.temperature, self.reconstruction = alpha, temperature, reconstruction

    def objective(self, points_BD: Tensor, quantized: Quantized, rows_B: Tensor) -> Tensor:
        rebuilt_BD = self.network.decode(quantized.vector)
        loss = self.alpha * contrastive_loss(points_BD, rebuilt_BD, self.temperature)
        return loss + super().objective(points_BD, quantized, rows_B) if self.reconstruction else loss


@dataclass(kw_only=True)
class CoST(AutoencoderTokenizer):
    """RQ-VAE trained by contrast."""

    method: ClassVar[str] = "cost"

    codebook_size: int = option("Codes per level.", 64, least=2)
    latent_dim: int = option("Dimension of what is quantised.", 96, least=1)
    shared_codebook: bool = option("One codebook for all levels, as the authors are said to have it.", True)
    alpha: float = option("Weight of the contrastive loss.", 0.1, above=0)
    temperature: float = option("Divides the cosines of the contrastive loss.", 0.1, above=0)
    reconstruction: bool = option("Keep the reconstruction loss beside the contrastive one.", False)

    def learner(self, points_ND: Tensor, generator: torch.Generator) -> Autoencoding:
        parts = self.parts(points_ND, self.latent_dim, generator, shared=self.shared_codebook)
        return Contrasting(points_ND, *parts, self.seed, self.alpha, self.temperature, self.reconstruction)
