"""Tokenizers that quantise the latent vectors of an autoencoder.

An MLP encodes the joint vector of an item's views, a residual quantiser replaces the latent vector by a sum of codes,
and a mirrored MLP decodes that. A method says what its loss is and gives the defaults of its paper.

The vectors are unit-length blocks of several hundred numbers; they are centred and scaled to one unit per number, as
large as the text embeddings of the released code are. The reconstruction loss is then the share of the variance that
stays unexplained, of a size with the quantiser's.

Shapes: N items, B rows, L levels, K codes of a level, D dimension of the vectors, E latent dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmrec.configs.options import option
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.residual_quantizer import RESTART_EVERY, RESTART_UNTIL, Quantized, ResidualQuantizer
from llmrec.tokenizers.shared.training_loop import Objective, TrainedTokenizer
from llmrec.tokenizers.shared.vectors import CHUNK, require_distinct

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


class Autoencoder(nn.Module):
    """Encoder, mirrored decoder, and the standardisation of their vectors."""

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


class Autoencoding(Objective):
    """Autoencoder and quantiser, trained together on vectors (N, D) of one device."""

    def __init__(self, points_ND: Tensor, network: Autoencoder, quantizer: ResidualQuantizer, seed: int):
        super().__init__()
        self.points, self.network, self.quantizer = points_ND, network, quantizer
        self.generator = torch.Generator(points_ND.device).manual_seed(seed)

    def loss(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        quantized = self.quantizer(self.network.encode(points_BD))
        return self.objective(points_BD, quantized, rows_B) + quantized.loss + self.penalty(quantized)

    def judge(self, rows_B: Tensor) -> Tensor:
        points_BD = self.points[rows_B]
        return self.objective(points_BD, self.quantizer(self.network.encode(points_BD)), rows_B)

    def objective(self, points_BD: Tensor, quantized: Quantized, rows_B: Tensor) -> Tensor:
        """What the codes are for: here, to rebuild the vectors."""
        return self.rebuilding_loss(points_BD, self.network.decode(quantized.vector))

    def rebuilding_loss(self, points_BD: Tensor, rebuilt_BD: Tensor) -> Tensor:
        """Share of the variance of the vectors that is not rebuilt."""
        return mse_loss(rebuilt_BD, points_BD) * self.network.scale**2

    def penalty(self, quantized: Quantized) -> Tensor | float:
        """What is added in training alone."""
        return 0.0

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, nearness: float) -> None:
        if step % RESTART_EVERY == 0 and nearness < RESTART_UNTIL:
            with torch.no_grad():
                latent_BE = self.network.encode(self.points[rows_B])
            self.quantizer.restart_dead(latent_BE, optimizer, self.generator)


@dataclass(kw_only=True)
class NetworkTokenizer(TrainedTokenizer):
    """A tokenizer whose latent vectors an autoencoder makes; `learn` sets `network` and `codebooks`."""

    # TIGER's.
    encoder_layers: list[int] = option("Hidden layers of the encoder; the decoder mirrors them.", [512, 256, 128])

    def __post_init__(self):
        super().__post_init__()
        self.network: Autoencoder | None = None

    def problems(self) -> list[str]:
        wrong = [size for size in self.encoder_layers if size < 1]
        return super().problems() + ([f"encoder_layers has {wrong}; sizes of at least 1 are needed"] if wrong else [])

    def latent(self, points_BD: Tensor) -> Tensor:
        return self.network.encode(points_BD)

    def decode(self, latent_BE: Tensor) -> Tensor:
        return self.network.decode(latent_BE)

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        return {**tensors, **{NETWORK + name: part for name, part in self.network.state_dict().items()}}, facts

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        network = self.empty_network(sum(self.view_dims.values()), self.codebooks[0].shape[1])
        own = {name.removeprefix(NETWORK): part for name, part in tensors.items() if name.startswith(NETWORK)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"its network does not fit the options: {error}") from error
        self.network = network.to(resolve_device(self.device)).eval().requires_grad_(False)

    def empty_network(self, dim: int, latent_dim: int) -> Autoencoder:
        """The network to read weights into."""
        return Autoencoder(dim, self.encoder_layers, latent_dim)


@dataclass(kw_only=True)
class AutoencoderTokenizer(NetworkTokenizer):
    """A tokenizer with learned codebooks between encoder and decoder; a method says what is trained, in `learner`."""

    commitment: float = option("Weight of the commitment loss.", 0.25, least=0)
    ste: Literal["per_level", "sum"] = option(
        "Where the gradient passes: at each level, as in released code, or the sum, as papers write it.", "per_level"
    )
    sinkhorn_epsilon: float = option("Even use of the last level in training; 0 turns it off.", 0.0, least=0)

    def learn(self, points_ND: Tensor) -> None:
        require_distinct(points_ND, self.codebook_size)
        device = resolve_device(self.device)
        learner = self.learner(points_ND.to(device), torch.Generator().manual_seed(self.seed))
        training = self.train(learner, len(points_ND), device)
        self.take(learner)
        used = torch.cat([self.codes_of(part)[:, 0] for part in learner.points.split(CHUNK)]).unique().numel()
        judged = f"loss on {training.held_out} held-out items" if training.held_out else "training loss"
        say(
            f"{self.method}: {training.epochs:.0f} epochs, {judged} {training.loss:.4f}, "
            f"level 0 uses {used} of {self.codebook_size} codes"
        )

    def take(self, learner: Autoencoding) -> None:
        """Make what was trained the tokenizer's own."""
        self.network = learner.network.requires_grad_(False)
        self.codebooks = [codebook_KE.detach().clone() for codebook_KE in learner.quantizer.levels]

    @abstractmethod
    def learner(self, points_ND: Tensor, generator: torch.Generator) -> Autoencoding:
        """What is trained, at its start.

        Args:
            points_ND: (N, D) on the device.
            generator: CPU generator of the starting weights and codes.
        """

    def parts(
        self, points_ND: Tensor, latent_dim: int, generator: torch.Generator, shared: bool = False
    ) -> tuple[Autoencoder, ResidualQuantizer]:
        """A random network, and a quantiser whose codes are centres of its latent vectors."""
        network = Autoencoder(points_ND.shape[1], self.encoder_layers, latent_dim, generator).to(points_ND.device)
        network.standardize(points_ND)
        quantizer = self.quantizer(latent_dim, shared).to(points_ND.device)
        with torch.no_grad():
            quantizer.start(torch.cat([network.encode(part) for part in points_ND.split(CHUNK)]), generator)
        return network, quantizer

    def quantizer(self, dim: int, shared: bool = False) -> ResidualQuantizer:
        return ResidualQuantizer(
            self.num_levels, self.codebook_size, dim, self.commitment, self.ste, self.sinkhorn_epsilon, shared
        )
