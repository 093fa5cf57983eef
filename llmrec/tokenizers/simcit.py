"""SimCIT: codes that agree with every view of an item, learned by contrast through a soft residual quantiser.

Views are encoded and fused by attention (fusion.py). Each level replaces what is left of the latent vector by a mixture
of all its codes (soft_quantizer.py); the sum of the mixtures is held against every view by NT-Xent (contrast.py),
through a linear projection that is thrown away after training. There is no reconstruction and no commitment; a penalty
keeps the codes of a level apart. Semantic IDs are made with nearest codes and what these leave, so that training and
export differ: how much is said after training.

One view is held against itself, quantised; the attention has no say then.

Source: SimCIT (arXiv:2506.16683), known to us by its released code (alibaba/SimCIT) and a digest of the paper. The
defaults are the paper's as far as they are known: 48 codes, 3 levels, a temperature that falls, by a law that is not
known. The released code has 2 levels of 128 codes, codes that start uniform, and constant temperature .2 and noise 1.
Departures: training ends at a plateau of the contrast with nearest codes (plateau.py), where the code has up to 15,000
epochs with warm-up and cosine; views are standardised; items that are all but equal are no negatives of each other;
codes start as k-means centres, at whose distances the temperature must end lower. On Amazon Beauty, batch 256, 13
epochs (annealed over 400 steps), distinct tuples per item are .069 from uniform codes and .605 from centres, both
ending at temperature .2, and .700 from centres ending at .02.

Batches are whole: a step over 8,192 items and 3 views took 3.8 GiB on a CPU, mostly for the logits, so that gradient
caching, which spares the encoders' memory, would save little. Negatives come from one process: nothing is gathered.

Shapes: N items, B rows, M views, L levels, K codes of a level, D sum of the view dimensions, E latent dimension.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.catalog import Catalog
from llmrec.console import say
from llmrec.device import resolve_device
from llmrec.options import option
from llmrec.tokenizers.autoencoder import NetworkTokenizer
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.contrast import duplicates, nt_xent
from llmrec.tokenizers.fusion import Fusion, linear
from llmrec.tokenizers.plateau import Learner
from llmrec.tokenizers.soft_quantizer import Annealing, Law, SoftQuantizer
from llmrec.tokenizers.vectors import CHUNK, require_distinct
from llmrec.views import ItemViews

MOSTLY = 0.5  # a view that knows a smaller share of the items is named


class Identifying(Learner):
    """Fusion, quantiser and projection, trained on vectors (N, D) of one device."""

    def __init__(
        self, points_ND: Tensor, network: Fusion, quantizer: SoftQuantizer, projection: nn.Module, options: SimCIT
    ):
        super().__init__()
        self.points, self.network, self.quantizer, self.projection = points_ND, network, quantizer, projection
        self.options, self.least_steps = options, options.least_steps
        self.view_weights = torch.tensor(options.view_weights or [1.0] * len(network.dims), device=points_ND.device)
        self.generator = torch.Generator(points_ND.device).manual_seed(options.seed)
        self.anneal(0)

    def loss(self, rows_B: Tensor) -> Tensor:
        return self.contrast(rows_B, False) + self.options.code_similarity * self.quantizer.similarity()

    def judge(self, rows_B: Tensor) -> Tensor:
        return self.contrast(rows_B, True)

    def contrast(self, rows_B: Tensor, hard: bool) -> Tensor:
        """Sum over views, with nearest codes or with the mixtures of training."""
        points_BD = self.points[rows_B]
        fused = self.network(points_BD)
        quantized_BE = (
            self.quantizer.hard(fused.latent)[0] if hard else self.quantizer(fused.latent, self.generator).vector
        )
        same_targets = [duplicates(block_BV) for block_BV in self.network.blocks(points_BD)]
        losses_M = nt_xent(
            self.projection(quantized_BE), self.projection(fused.views), fused.known, duplicates(points_BD),
            same_targets, self.options.contrast_temperature,
        )  # fmt: skip
        return (self.view_weights * losses_M).sum()

    def anneal(self, step: int) -> None:
        self.quantizer.temperature.fill_(self.options.annealing("temperature").at(step))
        self.quantizer.noise.fill_(self.options.annealing("noise").at(step))

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, nearness: float) -> None:
        self.anneal(step)

    @torch.no_grad()
    def signs(self) -> dict[str, Any]:
        """What tells a good training from a failed one, over all items, with temperature and noise of the best weights.

        Returns:
            Per level: perplexity of the codes, mismatch (share of items whose heaviest code without noise is not the
            exported one), sampled_nearest (share whose heaviest code with noise is the nearest). unique_per_item:
            distinct tuples per item. attention: mean share of each view over all items.
        """
        found, generator = [], torch.Generator(self.points.device).manual_seed(self.options.seed)
        for points_BD in self.points.split(CHUNK):
            fused = self.network(points_BD)
            quiet, noisy = self.quantizer(fused.latent), self.quantizer(fused.latent, generator)
            codes_BL = self.quantizer.hard(fused.latent)[1]
            differs_BL = torch.stack([weights.argmax(1) for weights in quiet.weights], 1) != codes_BL
            nearest_BL = torch.stack(
                [w.argmax(1) == s.argmax(1) for w, s in zip(noisy.weights, noisy.scores, strict=True)], 1
            )
            found.append((codes_BL, differs_BL, nearest_BL, fused.shares))
        codes_NL, differs_NL, nearest_NL, shares_NM = (torch.cat(part) for part in zip(*found, strict=True))
        return {
            "temperature": float(self.quantizer.temperature),
            "noise": float(self.quantizer.noise),
            "perplexity": [perplexity(codes_N) for codes_N in codes_NL.unbind(1)],
            "mismatch": differs_NL.float().mean(0).tolist(),
            "sampled_nearest": nearest_NL.float().mean(0).tolist(),
            "unique_per_item": len(codes_NL.unique(dim=0)) / len(codes_NL),
            "attention": shares_NM.mean(0).tolist(),
        }


def perplexity(codes_N: Tensor) -> float:
    """Number of evenly used codes that would be as uncertain."""
    shares_K = codes_N.bincount() / len(codes_N)
    return float(torch.special.entr(shares_K).sum().exp())


@dataclass(kw_only=True)
class SimCIT(NetworkTokenizer):
    """Soft residual quantisation of fused views, trained by contrast with each of them."""

    method: ClassVar[str] = "simcit"

    view_weights: list[float] | None = option("Weight of the contrast with each of `view_names`.", None)
    codebook_size: int = option("Codes per level.", 48, least=2)  # AMap: 128; released: 128
    num_levels: int = option("Codes per item, before a collision suffix.", 3, least=1)  # released: 2
    encoder_layers: list[int] = option("Hidden layers of the encoder of each view.", [512, 384, 256])
    latent_dim: int = option("Dimension of what is quantised.", 128, least=1)
    learning_rate: float = option("Of AdamW, constant.", 2e-4, above=0)
    weight_decay: float = option("Of AdamW.", 1e-3, least=0)
    batch_size: int = option("Items of a training step, each other's negatives.", 1024, least=2)  # released: 256
    contrast_temperature: float = option("Divides the cosines of the contrastive loss.", 0.07, above=0)
    projection: bool = option("Contrast through a linear layer, which is thrown away after training.", True)
    code_similarity: float = option("Weight of the mean cosine between codes of a level.", 1.0, least=0)
    codebook_start: Literal["uniform", "kmeans"] = option(
        "Starting codes: uniform in [0, 1), as released, or centres of the first latent vectors.", "kmeans"
    )
    anneal_steps: int = option("Steps until temperature and noise are at their end.", 1000, least=1)
    temperature_law: Law = option("How the temperature of the mixtures falls.", "exponential")  # released: constant
    temperature: float = option("Of the mixtures at first.", 1.0, above=0)  # released: .2
    temperature_end: float = option("Of the mixtures after annealing.", 0.02, above=0)
    noise_law: Law = option("How the scale of the Gumbel noise falls.", "linear")  # released: constant
    noise: float = option("Scale of the Gumbel noise at first.", 1.0, least=0)
    noise_end: float = option(
        "Scale of the Gumbel noise after annealing; above 0 for an exponential law.", 0.0, least=0
    )

    def __post_init__(self):
        super().__post_init__()
        self.signs: dict[str, Any] = {}

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.noise_law == "exponential" and 0 in (self.noise, self.noise_end):
            problems.append(
                f"noise goes from {self.noise} to {self.noise_end} by an exponential law, which never reaches 0; "
                "give numbers above 0, or set noise_law to linear"
            )
        return problems

    def annealing(self, name: Literal["temperature", "noise"]) -> Annealing:
        law, start, end = (getattr(self, name + part) for part in ("_law", "", "_end"))
        return Annealing(law, start, end, self.anneal_steps)

    @property
    def least_steps(self) -> int:
        """Steps before which a plateau is no end: the loss may still fall with temperature and noise."""
        return 0 if self.temperature_law == self.noise_law == "constant" else self.anneal_steps

    def learn(self, points_ND: Tensor) -> None:
        device = resolve_device(self.device)
        learner = self.learner(points_ND.to(device), torch.Generator().manual_seed(self.seed))
        for name, block_NV in zip(self.view_dims, learner.network.blocks(points_ND), strict=True):
            share = float(block_NV.any(1).float().mean())
            if share < MOSTLY:
                say(f"simcit: view '{name}' knows {share:.1%} of the items; the others are fused without it")
        training = self.train(learner, len(points_ND), device)
        self.network = learner.network.requires_grad_(False)
        self.codebooks = [codebook_KE.detach().clone() for codebook_KE in learner.quantizer.codebooks]
        self.signs = learner.signs()
        judged = f"loss on {training.held_out} held-out items" if training.held_out else "training loss"
        say(f"simcit: {training.epochs:.0f} epochs, {judged} {training.loss:.4f}; {self.described()}")

    def learner(self, points_ND: Tensor, generator: torch.Generator) -> Identifying:
        """What is trained, at its start.

        Args:
            points_ND: (N, D) on the device.
            generator: CPU generator of the starting weights and codes.
        """
        by_kmeans = self.codebook_start == "kmeans"
        require_distinct(points_ND.cpu(), self.codebook_size if by_kmeans else 2)
        network = Fusion(list(self.view_dims.values()), self.encoder_layers, self.latent_dim, generator)
        network.to(points_ND.device).standardize(points_ND)
        quantizer = SoftQuantizer(self.num_levels, self.codebook_size, self.latent_dim, generator)
        quantizer.to(points_ND.device)
        if by_kmeans:
            with torch.no_grad():
                quantizer.start(torch.cat([network.encode(part) for part in points_ND.split(CHUNK)]), generator)
        projection = linear(self.latent_dim, self.latent_dim, True, generator) if self.projection else nn.Identity()
        return Identifying(points_ND, network, quantizer, projection.to(points_ND.device), self)

    def described(self) -> str:
        """`signs` in words."""
        signs, levels = self.signs, range(self.num_levels)
        shares = ", ".join(
            f"{name} {share:.3f}" for name, share in zip(self.view_dims, signs["attention"], strict=True)
        )
        per_level = "; ".join(
            f"level {level}: perplexity {signs['perplexity'][level]:.1f} of {self.codebook_size}, "
            f"{signs['mismatch'][level]:.1%} of items exported with another code than training had, "
            f"{signs['sampled_nearest'][level]:.1%} of draws the nearest"
            for level in levels
        )
        return (
            f"{signs['unique_per_item']:.4f} tuples per item; attention {shares}; at temperature "
            f"{signs['temperature']:.3f} and noise {signs['noise']:.3f}, {per_level}"
        )

    def empty_network(self, dim: int, latent_dim: int) -> Fusion:
        return Fusion(list(self.view_dims.values()), self.encoder_layers, latent_dim)

    def decode(self, latent_BE: Tensor) -> Tensor:
        """(B, E) themselves: nothing leads from latent vectors back to views."""
        return latent_BE

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        encoded, device = super().encode(catalog, views), resolve_device(self.device)

        def latent(rows: np.ndarray) -> Tensor:
            return self.latent(encoded.vectors(rows).to(device)).cpu()

        return dataclasses.replace(encoded, vectors=latent)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super().state()
        return tensors, {**facts, "signs": self.signs}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super().restore(tensors, facts)
        self.signs = facts["signs"]
