"""RQ-VAE: an autoencoder whose latent vector is quantised level after level.

Sources: TIGER (arXiv:2305.05065), whose sizes are the defaults; LC-Rec (arXiv:2311.09049), whose options are num_levels
4, encoder_layers 2048 1024 512 256 128 64 (for LLaMA's vectors of 4,096) and sinkhorn_epsilon .003. Departures: AdamW
1e-3 with decay 1e-4, as in LC-Rec's code, where TIGER has Adagrad with .4; training ends at a plateau (plateau.py),
where TIGER has 20,000 epochs and LC-Rec 10,000; dead codes restart, and k-means starts the codebooks from more than one
batch (quantizer.py).

Shapes: N items, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.tokenizers.shared.autoencoder import AutoencoderTokenizer, Autoencoding


@dataclass(kw_only=True)
class RQVAE(AutoencoderTokenizer):
    """Residual-quantised autoencoder."""

    method: ClassVar[str] = "rq_vae"

    latent_dim: int = option("Dimension of what is quantised.", 32, least=1)

    def learner(self, points_ND: Tensor, generator: torch.Generator) -> Autoencoding:
        return Autoencoding(points_ND, *self.parts(points_ND, self.latent_dim, generator), self.seed)
