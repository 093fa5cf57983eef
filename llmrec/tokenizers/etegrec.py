"""ETEGRec's item tokenizer: an RQ-VAE of behaviour, made to be trained on in turns with the LLM (`llmrec alternate`).

`llmrec tokenize --method etegrec` is the paper's first step, the tokenizer alone: reconstruction and quantisation
losses over a collaborative view such as `sasrec`. `EndToEnd` is the same tokenizer with gradients to codes and latent
vectors from outside: a distribution over the codes of each level, and a reconstruction.

Source: ETEGRec (arXiv:2409.05546), section 2 and its training details. Departures: the weights kept are those of the
plateau (training_loop.py), as of all our trained tokenizers, where the paper keeps the epoch with the lowest collision
rate out of up to 10,000; views are scaled to unit length and standardised; k-means starts the codes from more than one
batch and dead codes restart in this first step (residual_quantizer.py). What is left at a level has the gradient of the
latent vector in the distributions, at every level: codes are subtracted from it as constants.

Shapes: N items, B rows, L levels, K codes of a level, D dimension of the vectors, E of the latent ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import (
    Autoencoder,
    AutoencoderObjective,
    LatentCodebooks,
    fit_autoencoder,
    restored_coder,
    start_from_kmeans,
)
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.kmeans import squared_distances
from llmrec.tokenizers.shared.residual_quantizer import Quantized, ResidualQuantizer
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import CHUNK, JointVectors
from llmrec.views import ItemViews


class Assignment(NamedTuple):
    """Codes of item vectors, with gradients.

    Attributes:
        quantized: Codes, their sum, and the codebook and commitment loss.
        logits: Of each level, (B, K) negative squared distances; their softmax is the distribution over codes.
        reconstruction: (B, D), whose gradient passes straight through to the latent vectors.
    """

    quantized: Quantized
    logits: list[Tensor]
    reconstruction: Tensor


class EndToEnd(AutoencoderObjective):
    """Autoencoder and quantiser of a catalogue's vectors (N, D), with outputs that can be aligned with an LLM."""

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
            latent_BE: (B, E) latent vectors of items, or vectors of the same space.
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
        return self.network.reconstruction_loss(points_BD, assigned.reconstruction) + assigned.quantized.loss

    @torch.no_grad()
    def codes(self) -> Tensor:
        """(N, L) int64 nearest codes of all items, on the CPU."""
        books = ResidualCodebooks(self.quantizer.levels)
        return torch.cat([books.codes(self.network.encode(part)) for part in self.points.split(CHUNK)]).cpu()


@dataclass(kw_only=True)
class ETEGRec(ItemTokenizer):
    """RQ-VAE of behaviour, for training in turns with the LLM."""

    method: ClassVar[str] = "etegrec"
    renamed: ClassVar[dict[str, str]] = {
        "ste": "removed: the gradient passes each level, which `llmrec alternate` relies on.",
        "sinkhorn_epsilon": "removed: the paper has no Sinkhorn assignment.",
    }

    # The paper's, but for max_epochs and patience.
    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-4)
    batch_size: int = options.batch_size(1024)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([512, 256])
    commitment: float = options.commitment(0.25)
    latent_dim: int = options.latent_dim(128)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def objective(self, points_ND: Tensor, generator: torch.Generator) -> EndToEnd:
        """The loss that is trained, with its parameters at their start.

        Args:
            points_ND: (N, D) on the device.
            generator: CPU generator of the starting weights and codes.
        """
        network = Autoencoder(points_ND.shape[1], self.encoder_layers, self.latent_dim, generator)
        return EndToEnd(points_ND, *start_from_kmeans(network, self._quantizer(), points_ND, generator), self.seed)

    def _quantizer(self) -> ResidualQuantizer:
        return ResidualQuantizer(self.num_levels, self.codebook_size, self.latent_dim, self.commitment)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder, self.training_log = fit_autoencoder(self, catalog, views)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims = facts["view_dims"]
        network = Autoencoder(sum(dims.values()), self.encoder_layers, self.latent_dim)
        self.coder = restored_coder(self, tensors, dims, network)

    def end_to_end(self, catalog: Catalog, views: ItemViews) -> EndToEnd:
        """Copy the fitted tokenizer into a module that can be trained further.

        Args:
            catalog: Items.
            views: The views of `fit`, of this catalogue.

        Returns:
            The module over the vectors of all items, on the device of the tokenizer.
        """
        device = resolve_device(self.device)
        points_ND = JointVectors(catalog, views, self.view_weights).of(np.arange(catalog.num_items))
        with torch.random.fork_rng(devices=[]):  # the weights are overwritten, and the LLM's run has its own draws
            network = Autoencoder(points_ND.shape[1], self.encoder_layers, self.latent_dim)
        fitted = LatentCodebooks.restored(
            self.fitted.tensors(), [self.codebook_size] * self.num_levels, network, device
        )
        quantizer = self._quantizer()
        with torch.no_grad():
            for codebook_KE, fitted_KE in zip(quantizer.levels, fitted.codebooks.books, strict=True):
                codebook_KE.copy_(fitted_KE)
        return EndToEnd(points_ND.to(device), network, quantizer, self.seed).to(device)

    def take(self, trained: EndToEnd) -> None:
        """Replace network and codebooks by those of a module that has been trained further."""
        dims, device = self.fitted.facts()["view_dims"], resolve_device(self.device)
        self.coder = VectorCoder(dims, trained.codebooks(), device, self.view_weights)
