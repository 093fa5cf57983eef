"""Autoencoder with residual codebooks in its middle: the parts of the RQ-VAE methods, and their training.

An MLP encodes the joint vector of an item's views, a residual quantiser replaces the latent vector by a sum of codes,
and a mirrored MLP decodes that.

The vectors are unit-length blocks of several hundred numbers; they are centred and scaled to one unit per number, as
large as the text embeddings of the released code are. The reconstruction loss is then the share of the variance that
stays unexplained, of a size with the quantiser's.

Shapes: N items, B of a batch, L levels, K codes of a level, D dimension of the vectors, E latent dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.residual_quantizer import RESTART_EVERY, RESTART_UNTIL, Quantized, ResidualQuantizer
from llmrec.tokenizers.shared.training_loop import Objective, TrainingOptions, TrainingResult, train
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import CHUNK, JointVectors
from llmrec.views import ItemViews

NETWORK = "network."  # prefix of its tensors in the tokenizer's file


def mlp(sizes: Sequence[int], generator: torch.Generator | None = None) -> nn.Sequential:
    """Linear layers with ReLU between them; Xavier normal weights, as the released code of LC-Rec has them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LatentNetwork(nn.Module, ABC):
    """A network whose latent vectors can be quantised."""

    @abstractmethod
    def encode(self, points_BD: Tensor) -> Tensor:
        """(B, E) latent vectors."""

    @abstractmethod
    def decode(self, latent_BE: Tensor) -> Tensor:
        """(B, D) vectors that latent ones stand for; the latent vectors themselves without a decoder."""


class Autoencoder(LatentNetwork):
    """Encoder, mirrored decoder, and the standardisation of their vectors.

    Args:
        dim: D.
        hidden: Sizes of the hidden layers of the encoder.
        latent_dim: E.
        generator: CPU generator of the starting weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, hidden: Sequence[int], latent_dim: int, generator: torch.Generator | None = None):
        super().__init__()
        self.encoder = mlp([dim, *hidden, latent_dim], generator)
        self.decoder = mlp([latent_dim, *reversed(hidden), dim], generator)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, points_ND: Tensor) -> None:
        """Learn mean and scale."""
        self.mean.copy_(points_ND.mean(0))
        self.scale.copy_(1 / (points_ND - self.mean).square().mean().sqrt())

    def encode(self, points_BD: Tensor) -> Tensor:
        return self.encoder((points_BD - self.mean) * self.scale)

    def decode(self, latent_BE: Tensor) -> Tensor:
        return self.decoder(latent_BE) / self.scale + self.mean

    def reconstruction_loss(self, points_BD: Tensor, rebuilt_BD: Tensor) -> Tensor:
        """Share of the variance of the vectors that is not rebuilt, a scalar."""
        return mse_loss(rebuilt_BD, points_BD) * self.scale**2


@dataclass
class LatentCodebooks:
    """Codebooks of the latent vectors of a network.

    Attributes:
        network: In evaluation mode, on the device of the codebooks.
        codebooks: (K, E) of each level.
    """

    network: LatentNetwork
    codebooks: ResidualCodebooks

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return self.codebooks.level_sizes

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 codes of the latent vectors."""
        return self.codebooks.codes(self.network.encode(points_BD))

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) decoded sums of codes."""
        return self.network.decode(self.codebooks.rebuild(codes_BL))

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) squared distances in the latent space."""
        return self.codebooks.last_level_cost(self.network.encode(points_BD), codes_BL)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        network = {NETWORK + name: part for name, part in self.network.state_dict().items()}
        return {**self.codebooks.tensors(), **network}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {}

    @classmethod
    def restored(
        cls, tensors: Mapping[str, Tensor], level_sizes: Sequence[int], network: LatentNetwork, device: torch.device
    ) -> Self:
        """Read what `tensors` has saved.

        Args:
            tensors: Content of the tokenizer's file.
            level_sizes: Codes of each level.
            network: Of the saved network's layers; its weights are overwritten.
            device: Where to compute.

        Raises:
            ValueError: If codebooks or network do not fit.
        """
        codebooks = ResidualCodebooks.restored(tensors, level_sizes, device)
        own = {name.removeprefix(NETWORK): part for name, part in tensors.items() if name.startswith(NETWORK)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"its network does not fit the options: {error}") from error
        return cls(network.to(device).eval().requires_grad_(False), codebooks)


class AutoencoderObjective(Objective):
    """Reconstruction through the codes, plus the quantiser's loss.

    A method with another aim overrides `main_loss`, and one that adds a loss in training alone `penalty`.

    Args:
        points_ND: (N, D) vectors of the items, on one device.
        network: On this device.
        quantizer: On this device.
        seed: Of the restarts.
        restarts: Whether codes that nothing uses move to a random residual.
    """

    points: Tensor
    divides = True

    def __init__(
        self, points_ND: Tensor, network: Autoencoder, quantizer: ResidualQuantizer, seed: int, restarts: bool = True
    ):
        super().__init__()
        self.points, self.network, self.quantizer, self.restarts = points_ND, network, quantizer, restarts
        self.generator = torch.Generator(points_ND.device).manual_seed(seed)
        self.divides = self.divides and not quantizer.sinkhorn_epsilon  # which spreads the items of a batch

    def running_means(self) -> list[Tensor]:
        return [self.quantizer.usage]

    def loss(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        quantized = self.quantizer(self.network.encode(points_BD))
        return self.main_loss(points_BD, quantized, rows_B) + quantized.loss + self.penalty(quantized)

    def validation_loss(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        return self.main_loss(points_BD, self.quantizer(self.network.encode(points_BD)), rows_B)

    def main_loss(self, points_BD: Tensor, quantized: Quantized, rows_B: Tensor) -> Tensor:
        """The loss that stops training."""
        return self.network.reconstruction_loss(points_BD, self.network.decode(quantized.vector))

    def penalty(self, quantized: Quantized) -> Tensor | float:
        """A loss that is added in training alone."""
        return 0.0

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> None:
        if self.restarts and step % RESTART_EVERY == 0 and progress < RESTART_UNTIL:
            with torch.no_grad():
                latent_BE = self.network.encode(self.points[rows_B])
            self.quantizer.restart_dead(latent_BE, optimizer, self.generator)

    def codebooks(self) -> LatentCodebooks:
        """Network and codebooks as they are now, to give items their codes."""
        books = [codebook_KE.detach().clone() for codebook_KE in self.quantizer.levels]
        return LatentCodebooks(self.network.requires_grad_(False), ResidualCodebooks(books))


def start_from_kmeans(
    network: Autoencoder, quantizer: ResidualQuantizer, points_ND: Tensor, generator: torch.Generator
) -> tuple[Autoencoder, ResidualQuantizer]:
    """Standardise a random network by the vectors, and set the codes to centres of its latent vectors.

    Args:
        network: Changed in place, and moved to the device of the vectors.
        quantizer: Likewise.
        points_ND: (N, D).
        generator: CPU generator of k-means.

    Returns:
        Both.
    """
    network, quantizer = network.to(points_ND.device), quantizer.to(points_ND.device)
    network.standardize(points_ND)
    with torch.no_grad():
        quantizer.start(torch.cat([network.encode(part) for part in points_ND.split(CHUNK)]), generator)
    return network, quantizer


def train_codebooks(
    objective: AutoencoderObjective, options: TrainingOptions, num_late: int = 1
) -> tuple[LatentCodebooks, TrainingResult]:
    """Train until the plateau, and report it.

    Args:
        objective: At its start.
        options: Of the method.
        num_late: Number of weights to keep; see `TrainingResult.late`.
    """
    points_ND = objective.points
    result = train(objective, len(points_ND), points_ND.device, options, num_late)
    codebooks = objective.codebooks()
    used = torch.cat([codebooks.codes(part)[:, 0] for part in points_ND.split(CHUNK)]).unique().numel()
    say(f"{options.method}: {result}, level 0 uses {used} of {codebooks.level_sizes[0]} codes")
    return codebooks, result


class AutoencoderOptions(TrainingOptions, Protocol):
    """A tokenizer whose codes are those of an autoencoder of all its views."""

    view_weights: list[float] | None
    codebook_size: int
    num_levels: int
    device: str

    def objective(self, points_ND: Tensor, generator: torch.Generator) -> AutoencoderObjective:
        """The loss that is trained, with its parameters at their start."""


def fit_autoencoder(
    tokenizer: AutoencoderOptions, catalog: Catalog, views: ItemViews
) -> tuple[VectorCoder, list[list[JsonObject]]]:
    """Train the autoencoder of a tokenizer on the joint vectors of the items.

    Args:
        tokenizer: Not fitted.
        catalog: Items.
        views: Vectors of the items.

    Returns:
        Coder and training log of the fitted tokenizer.

    Raises:
        ValueError: If fewer items than codes have a vector.
    """
    vectors, device = JointVectors(catalog, views, tokenizer.view_weights), resolve_device(tokenizer.device)
    points_ND = vectors.to_fit(tokenizer.codebook_size).to(device)
    objective = tokenizer.objective(points_ND, torch.Generator().manual_seed(tokenizer.seed))
    codebooks, result = train_codebooks(objective, tokenizer)
    return VectorCoder(vectors.dims, codebooks, device, tokenizer.view_weights), [result.log]


def restored_coder(
    tokenizer: AutoencoderOptions, tensors: Mapping[str, Tensor], view_dims: dict[str, int], network: Autoencoder
) -> VectorCoder:
    """Coder of a fitted tokenizer from the tensors of `VectorCoder.tensors`; the weights of `network` are replaced.

    Raises:
        ValueError: If the tensors do not fit the options.
    """
    device, sizes = resolve_device(tokenizer.device), [tokenizer.codebook_size] * tokenizer.num_levels
    codebooks = LatentCodebooks.restored(tensors, sizes, network, device)
    return VectorCoder(view_dims, codebooks, device, tokenizer.view_weights)
