"""ETEGRec's item tokenizer: an RQ-VAE of behaviour, made to be trained on in turns with the LLM (`llmrec alternate`).

`llmrec tokenize --method etegrec` is the paper's first step, the tokenizer alone: reconstruction and quantisation
losses over a collaborative view such as `sasrec`. `EndToEnd` is the same tokenizer with gradients to codes and latent
vectors from outside: a distribution over the codes of each level, and a reconstruction.

Source: ETEGRec (arXiv:2409.05546), section 2 and its training details. Departures: the weights kept are those of the
plateau (plateau.py), which judges all our trained tokenizers, where the paper keeps the epoch with the lowest collision
rate out of up to 10,000; views are scaled to unit length and standardised; k-means starts the codes from more than one
batch and dead codes restart in this first step (quantizer.py). What is left at a level has the gradient of the latent
vector in the distributions, at every level: codes are subtracted from it as constants.

Shapes: N items, B rows, L levels, K codes of a level, D dimension of the vectors, E of the latent ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.runtime.device import resolve_device
from llmrec.tokenizers.rq_vae import RQVAE
from llmrec.tokenizers.shared.autoencoder import Autoencoding
from llmrec.tokenizers.shared.kmeans import nearest, squared_distances
from llmrec.tokenizers.shared.residual_quantizer import Quantized
from llmrec.tokenizers.shared.vectors import CHUNK


class Assignment(NamedTuple):
    """What the tokenizer makes of item vectors.

    Attributes:
        quantized: Codes, their sum, and the codebook and commitment loss.
        logits: Of each level, (B, K) negative squared distances; their softmax is the distribution over codes.
        reconstruction: (B, D), whose gradient passes straight through to the latent vectors.
    """

    quantized: Quantized
    logits: list[Tensor]
    reconstruction: Tensor


class EndToEnd(Autoencoding):
    """Autoencoder and quantiser of a catalogue's vectors (N, D), with what aligns them with a recommender."""

    def assign(self, points_BD: Tensor) -> Assignment:
        """Quantise item vectors.

        Args:
            points_BD: (B, D).
        """
        latent_BE = self.network.encode(points_BD)
        quantized = self.quantizer(latent_BE)
        logits = self.logits(latent_BE, quantized.codes)
        return Assignment(quantized, logits, self.network.decode(quantized.vector))

    def logits(self, latent_BE: Tensor, codes_BL: Tensor | None = None) -> list[Tensor]:
        """Distributions over codes along a chain of hard codes.

        Args:
            latent_BE: (B, E) of items, or of anything that shall be spoken of in codes.
            codes_BL: (B, L) int64 codes to subtract; the nearest ones of these vectors when left out.

        Returns:
            Of each level, (B, K) negative squared distances of its codes to what the codes before have left.

        Source: ETEGRec (arXiv:2409.05546), P(k|v) = softmax_k(-|v - e_k|^2).
        """
        left_BE, found = latent_BE, []
        for level, codebook_KE in enumerate(self.quantizer.levels):
            found.append(-squared_distances(left_BE, codebook_KE))
            codes_B = found[-1].argmax(1) if codes_BL is None else codes_BL[:, level]
            left_BE = left_BE - codebook_KE[codes_B].detach()
        return found

    def own_loss(self, points_BD: Tensor, assigned: Assignment) -> Tensor:
        """Reconstruction, codebook and commitment loss of item vectors, as they are pretrained."""
        return self.rebuilding_loss(points_BD, assigned.reconstruction) + assigned.quantized.loss

    @torch.no_grad()
    def codes(self) -> Tensor:
        """(N, L) int64 nearest codes of all items, on the CPU."""
        return torch.cat([self._nearest(part) for part in self.points.split(CHUNK)]).cpu()

    def _nearest(self, points_BD: Tensor) -> Tensor:
        left_BE, codes = self.network.encode(points_BD), []
        for codebook_KE in self.quantizer.levels:
            codes.append(nearest(left_BE, codebook_KE)[0])
            left_BE = left_BE - codebook_KE[codes[-1]]
        return torch.stack(codes, 1)


@dataclass(kw_only=True)
class ETEGRec(RQVAE):
    """RQ-VAE of behaviour, for training in turns with the LLM."""

    method: ClassVar[str] = "etegrec"

    encoder_layers: list[int] = option("Hidden layers of the encoder; the decoder mirrors them.", [512, 256])
    latent_dim: int = option("Dimension of what is quantised.", 128, least=1)

    def learner(self, points_ND: Tensor, generator: torch.Generator) -> EndToEnd:
        return EndToEnd(points_ND, *self.parts(points_ND, self.latent_dim, generator), self.seed)

    def end_to_end(self, points_ND: Tensor) -> EndToEnd:
        """The fitted tokenizer, to be trained on.

        Args:
            points_ND: (N, D) vectors of all items, of `joint_vectors`.
        """
        quantizer = self.quantizer(self.latent_dim)
        with torch.no_grad():
            for codebook_KE, fitted_KE in zip(quantizer.levels, self.codebooks, strict=True):
                codebook_KE.copy_(fitted_KE)
        device = resolve_device(self.device)
        return EndToEnd(points_ND.to(device), copy.deepcopy(self.network), quantizer, self.seed).to(device)
