"""RQ-VAE: an autoencoder whose latent vector is quantised level after level.

Sources: TIGER (arXiv:2305.05065), whose sizes are the defaults; LC-Rec (arXiv:2311.09049), whose options are num_levels
4, encoder_layers 2048 1024 512 256 128 64 (for LLaMA's vectors of 4,096) and sinkhorn_epsilon .003. Departures: AdamW
1e-3 with decay 1e-4, as in LC-Rec's code, where TIGER has Adagrad with .4; training ends at a plateau
(training_loop.py), where TIGER has 20,000 epochs and LC-Rec 10,000; dead codes restart, and k-means starts the
codebooks from more than one batch (residual_quantizer.py).

With `aliases`, an item also gets the codes of the weights at earlier readings of the held-out loss, as MTGRec
(arXiv:2504.04400) takes those of adjacent checkpoints; `llmrec.model.history.aliases` says how they are trained on.
Departures: MTGRec keeps the last epochs of a fixed number, here the last readings, 100 steps apart, end with the best.

Shapes: N items, D dimension of the vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Coder, ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import (
    Autoencoder,
    AutoencoderObjective,
    LatentCodebooks,
    restored_coder,
    start_from_kmeans,
    train_codebooks,
)
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.residual_quantizer import ResidualQuantizer
from llmrec.tokenizers.shared.training_loop import EVERY
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
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
    # MTGRec keeps 11 checkpoints.
    aliases: int = option(
        "Number of semantic IDs of an item: by the best weights, and by those at the readings of the held-out loss "
        "before. `llmrec sft` draws one for each sequence.",
        1,
        least=1,
        most=64,
    )

    @property
    def num_aliases(self) -> int:
        return self.aliases

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
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        points_ND = vectors.to_fit(self.codebook_size).to(device)
        objective = self.objective(points_ND, torch.Generator().manual_seed(self.seed))
        codebooks, result = train_codebooks(objective, self, self.aliases)
        if len(result.late) < self.aliases:
            raise ValueError(
                f"aliases is {self.aliases}, but the held-out loss was read {len(result.late)} times up to its best, "
                f"once in {EVERY} steps. Lower aliases or batch_size, or raise max_epochs."
            )
        each = [codebooks, *(codebooks_at(objective, weights) for weights in reversed(result.late[:-1]))]
        coders: list[Coder] = [VectorCoder(vectors.dims, one, device, self.view_weights) for one in each]
        (self.coder, *self.other_coders), self.training_log = coders, [result.log]
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims = facts["view_dims"]
        network = Autoencoder(sum(dims.values()), self.encoder_layers, self.latent_dim)
        self.coder = restored_coder(self, tensors, dims, network)


def codebooks_at(objective: AutoencoderObjective, weights: Mapping[str, Tensor]) -> LatentCodebooks:
    """Network and codebooks of an objective as they were at earlier weights; those of now stay."""
    network, quantizer = copy.deepcopy((objective.network, objective.quantizer))
    for prefix, part in (("network.", network), ("quantizer.", quantizer)):
        part.load_state_dict({name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)})
    books = [codebook_KE.detach() for codebook_KE in quantizer.levels]
    return LatentCodebooks(network.eval().requires_grad_(False), ResidualCodebooks(books))
