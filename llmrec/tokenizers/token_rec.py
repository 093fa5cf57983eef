"""TokenRec's masked quantiser: several encoders side by side, each with a codebook, that read the same vector.

    code_l = the code of book l nearest to encoder_l(mask_l of the vector)        rebuilt = decoder(sum of the codes)

Codes do not refine one another: each is a whole reading of the item, from which a random part of the numbers was hidden
in training. The vectors are those of behaviour (`llmrec embed --views lightgcn`), and the LLM that reads the codes
compares its state with these vectors again: `llmrec extend --head projection`.

Source: TokenRec (arXiv:2406.10450), whose sizes are the defaults, and its released code. Departures from the code: its
class `MQ` has one encoder and quantises residuals, and hides the same numbers of all items of a batch; encoders, books
and masks are apart here, as the paper has them. Its decoder reads `z + (codes - z).detach()` with z of the first book
alone; here every encoder has the gradient of the reconstruction. Dead codes restart, where the code runs k-means again
every 50 epochs; vectors are centred and scaled; training ends at a plateau (training_loop.py) where it has 1,000
epochs; no dropout beside the masks, with which less was rebuilt. docs/papers.md says why users get no codes.

Shapes: N items, B of a batch, L levels, K codes of a level, D dimension of the vectors, E latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.kmeans import nearest, squared_distances
from llmrec.tokenizers.shared.residual_quantizer import RESTART_EVERY, RESTART_UNTIL, ResidualQuantizer
from llmrec.tokenizers.shared.training_loop import Objective, train
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import CHUNK, JointVectors
from llmrec.views import ItemViews


def normalized_mlp(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with batch normalisation and ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class MaskedQuantizers(nn.Module):
    """Encoders with a codebook each, and one decoder; in evaluation mode, the fitted quantiser of `VectorCoder`.

    Args:
        dim: D.
        hidden: Sizes of the hidden layers of an encoder; the decoder mirrors them.
        latent_dim: E.
        level_sizes: Number of codes of each level.
        commitment: Weight of the commitment loss.
        generator: CPU generator of the starting weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        latent_dim: int,
        level_sizes: Sequence[int],
        commitment: float,
        generator: torch.Generator,
    ):
        super().__init__()
        self.level_sizes = list(level_sizes)
        self.encoders = nn.ModuleList(normalized_mlp([dim, *hidden, latent_dim], generator) for _ in level_sizes)
        self.quantizers = [ResidualQuantizer(1, size, latent_dim, commitment) for size in level_sizes]
        self.books = nn.ModuleList(self.quantizers)
        self.decoder = normalized_mlp([latent_dim, *reversed(hidden), dim], generator)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, points_ND: Tensor) -> None:
        """Learn mean and scale."""
        self.mean.copy_(points_ND.mean(0))
        self.scale.copy_(1 / (points_ND - self.mean).square().mean().sqrt())

    def encode(self, points_BD: Tensor, shown_LBD: Tensor | None = None) -> list[Tensor]:
        """Read vectors by every encoder.

        Args:
            points_BD: (B, D) vectors.
            shown_LBD: (L, B, D) 0 for the numbers that an encoder does not see, else 1; all are seen when left out.

        Returns:
            L tensors (B, E).
        """
        centred_BD = (points_BD - self.mean) * self.scale
        inputs = [centred_BD] * len(self.encoders) if shown_LBD is None else list(centred_BD * shown_LBD)
        return [encoder(seen_BD) for encoder, seen_BD in zip(self.encoders, inputs, strict=True)]

    def losses(self, points_BD: Tensor, shown_LBD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the share of the variance that is not rebuilt, and the sum of the books' losses, both scalars."""
        latents = self.encode(points_BD, shown_LBD)
        quantized = [book(latent_BE) for book, latent_BE in zip(self.quantizers, latents, strict=True)]
        rebuilt_BD = self.decode(torch.stack([each.vector for each in quantized]).sum(0))
        return mse_loss(rebuilt_BD, points_BD) * self.scale**2, torch.stack([each.loss for each in quantized]).sum()

    def decode(self, total_BE: Tensor) -> Tensor:
        """(B, D) vectors that sums of codes stand for."""
        return self.decoder(total_BE) / self.scale + self.mean

    def book(self, level: int) -> Tensor:
        """(K, E) codebook of a level."""
        return self.quantizers[level].levels[0]

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 nearest codes."""
        found = [nearest(latent_BE, self.book(level))[0] for level, latent_BE in enumerate(self.encode(points_BD))]
        return torch.stack(found, dim=1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) decoded sums of codes."""
        return self.decode(torch.stack([self.book(level)[codes_B] for level, codes_B in enumerate(codes_BL.T)]).sum(0))

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) squared distances in the last latent space, which do not depend on the other codes."""
        return squared_distances(self.encode(points_BD)[-1], self.book(-1))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return dict(self.state_dict())

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {}


class MaskedObjective(Objective):
    """Reconstruction through the codes of masked vectors.

    Args:
        points_ND: (N, D) vectors of the items, on one device.
        network: On this device.
        masking: Share of the numbers of a vector that each encoder does not see in training.
        seed: Of masks and restarts.
    """

    def __init__(self, points_ND: Tensor, network: MaskedQuantizers, masking: float, seed: int):
        super().__init__()
        self.points, self.network, self.masking = points_ND, network, masking
        self.generator = torch.Generator(points_ND.device).manual_seed(seed)

    def start(self, generator: torch.Generator) -> None:
        """Standardise by the vectors, and set every book to centres of its encoder's latent vectors."""
        self.network.standardize(self.points)
        self.network.train()  # batch normalisation has seen nothing yet
        with torch.no_grad():
            parts = [self.network.encode(part) for part in self.points.split(CHUNK)]
            for book, latents in zip(self.network.quantizers, zip(*parts, strict=True), strict=True):
                book.start(torch.cat(latents), generator)

    def loss(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        shown_LBD = points_BD.new_empty(len(self.network.encoders), *points_BD.shape)
        shown_LBD.bernoulli_(1 - self.masking, generator=self.generator)
        lost, of_books = self.network.losses(points_BD, shown_LBD)
        return lost + of_books

    def validation_loss(self, rows_B: Tensor) -> Tensor:
        return self.network.losses(self.points[rows_B])[0]

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> None:
        if step % RESTART_EVERY or progress >= RESTART_UNTIL:
            return
        with torch.no_grad():
            latents = self.network.encode(self.points[rows_B])
        for book, latent_BE in zip(self.network.quantizers, latents, strict=True):
            book.restart_dead(latent_BE, optimizer, self.generator)


@dataclass(kw_only=True)
class TokenRec(ItemTokenizer):
    """Masked parallel quantisers."""

    method: ClassVar[str] = "token_rec"

    # Sizes, rates, batch and commitment are those of the paper or its code, max_epochs and patience are ours.
    view_weights: list[float] | None = options.view_weights()
    num_levels: int = option("Number of codes per item, each of an encoder of its own.", 3, least=1)
    codebook_size: int = options.codebook_size(256)
    masking: float = option(
        "Share of the numbers of a vector that each encoder does not see in training.", 0.2, least=0, most=0.95
    )
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-2)
    batch_size: int = options.batch_size(512, least=2)  # batch normalisation needs two items
    max_epochs: int = options.max_epochs(1000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([128, 256])
    latent_dim: int = options.latent_dim(512)
    commitment: float = options.commitment(0.25)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def network(self, dim: int) -> MaskedQuantizers:
        """Network of vectors with `dim` numbers, at random weights."""
        sizes, generator = self.planned_sizes(0), torch.Generator().manual_seed(self.seed)
        return MaskedQuantizers(dim, self.encoder_layers, self.latent_dim, sizes, self.commitment, generator)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        points_ND = vectors.to_fit(self.codebook_size).to(device)
        objective = MaskedObjective(points_ND, self.network(points_ND.shape[1]).to(device), self.masking, self.seed)
        objective.start(torch.Generator().manual_seed(self.seed))
        result = train(objective, len(points_ND), device, self)
        self.training_log = [result.log]
        say(f"{self.method}: {result}")
        self.coder = VectorCoder(vectors.dims, objective.network.requires_grad_(False), device, self.view_weights)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims, device = facts["view_dims"], resolve_device(self.device)
        network = self.network(sum(dims.values()))
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"its network does not fit the options: {error}") from error
        self.coder = VectorCoder(dims, network.to(device).eval().requires_grad_(False), device, self.view_weights)
