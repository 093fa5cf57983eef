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
Contrast temperature .07 and the penalty are the code's; of the paper it is said that .1 is good and that there is no
penalty (recipes/beauty-simcit has both). Departures: training ends at a plateau of the contrast with nearest codes
(plateau.py), where the code has up to 15,000 epochs with warm-up and cosine; views are standardised; items that are all
but equal are no negatives of each other; codes start as k-means centres, at whose distances the temperature must end
lower. On Amazon Beauty, batch 256, 13 epochs (annealed over 400 steps), distinct tuples per item are .069 from uniform
codes and .605 from centres, both ending at temperature .2, and .700 from centres ending at .02.

Quality rises with the batch, whose other items are the negatives. `micro_batch_size` gives the gradient of the whole
batch in the memory of a part (gradient_cache.py), of encoders and quantiser as of the (B, B) logits. So one device is
enough for any batch, and negatives are not gathered over processes.

Not in the paper, which names it as open: `prefix_weight` asks the codes before the last to find the item too, as far
as they can, so that a prefix by itself tells items apart.

Shapes: N items, B rows, b rows of a part, M views, L levels, A anchors of an item, K codes of a level, D sum of the
view dimensions, E latent dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.shared.autoencoder import NetworkTokenizer
from llmrec.tokenizers.shared.contrast import nt_xent
from llmrec.tokenizers.shared.fusion import Fusion, linear
from llmrec.tokenizers.shared.gradient_cache import in_parts
from llmrec.tokenizers.shared.soft_quantizer import Annealing, Law, SoftQuantizer
from llmrec.tokenizers.shared.training_loop import Objective
from llmrec.tokenizers.shared.vectors import CHUNK, require_distinct
from llmrec.tokenizers.simcit_signs import described, signs_of
from llmrec.views import ItemViews

MOSTLY = 0.5  # a view that knows a smaller share of the items is named
DROWNS = 0.95  # a view of several that has a larger share of the attention is named


class Identifying(Objective):
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
        contrast = self.contrast(rows_B, self.quantizer.draw(len(rows_B), self.generator))
        return contrast + self.options.code_similarity * self.quantizer.similarity()

    def judge(self, rows_B: Tensor) -> Tensor:
        return self.contrast(rows_B, None)

    def contrast(self, rows_B: Tensor, noise: list[Tensor] | None) -> Tensor:
        """Sum over views, with the mixtures of training, or with nearest codes where noise is None."""
        points_BD, size = self.points[rows_B], self.options.micro_batch_size

        def represent(points_bD: Tensor, *noise_bK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Anchors (b, A, E), views (b, M, E) and which of them are known (b, M)."""
            fused = self.network(points_bD)
            hard = not noise_bK
            prefixes_bLE = self.quantizer.hard(fused.latent)[0] if hard else self.quantizer(fused.latent, noise_bK)[0]
            anchors_bAE = prefixes_bLE if self.options.prefix_weight else prefixes_bLE[:, -1:]
            return self.projection(anchors_bAE), self.projection(fused.views), fused.known

        parts = in_parts(represent, size, points_BD, *(noise or ()))
        anchors_BAE, views_BME, known_BM = (torch.cat(part) for part in zip(*parts, strict=True))
        blocks = self.network.blocks(points_BD)
        temperature = self.options.contrast_temperature
        losses_AM = nt_xent(anchors_BAE, views_BME, known_BM, points_BD, blocks, temperature, size)
        prefixes = self.options.prefix_weight * losses_AM[:-1].mean(0) if len(losses_AM) > 1 else 0.0
        return (self.view_weights * (losses_AM[-1] + prefixes)).sum()

    def anneal(self, step: int) -> None:
        self.quantizer.temperature.fill_(self.options.annealing("temperature").at(step))
        self.quantizer.noise.fill_(self.options.annealing("noise").at(step))

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, nearness: float) -> None:
        self.anneal(step)

    def watch(self, rows_N: Tensor) -> JsonObject:
        names = list(self.options.view_dims)
        return signs_of(self.points, rows_N, self.network, self.quantizer, names, self.options.seed)


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
    micro_batch_size: int | None = option(
        "Items that go through at once, for the gradient of the whole batch in less memory; left out, all.",
        None,
        least=1,
    )
    contrast_temperature: float = option("Divides the cosines of the contrastive loss.", 0.07, above=0)
    projection: bool = option("Contrast through a linear layer, which is thrown away after training.", True)
    prefix_weight: float = option(
        "Weight of the mean contrast of the codes up to each level but the last; 0 contrasts all codes together alone.",
        0.0,
        least=0,
    )
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
        self.signs: JsonObject = {}

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.noise_law == "exponential" and 0 in (self.noise, self.noise_end):
            problems.append(
                f"noise goes from {self.noise} to {self.noise_end} by an exponential law, which never reaches 0; "
                "give numbers above 0, or set noise_law to linear"
            )
        if self.prefix_weight and self.num_levels == 1:
            problems.append(
                f"prefix_weight is {self.prefix_weight} for one level, which has no prefix; leave it out, or raise "
                "num_levels"
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
        self.warn(learner.network.blocks(points_ND))
        training = self.train(learner, len(points_ND), device)
        self.network = learner.network.requires_grad_(False)
        self.codebooks = [codebook_KE.detach().clone() for codebook_KE in learner.quantizer.codebooks]
        self.signs = learner.watch(torch.arange(len(points_ND), device=device))
        judged = f"loss on {training.held_out} held-out items" if training.held_out else "training loss"
        say(
            f"simcit: {training.epochs:.0f} epochs, {judged} {training.loss:.4f}; "
            f"{described(self.signs, self.codebook_size)}"
        )
        name, share = max(self.signs["attention"].items(), key=lambda of: of[1])
        if len(self.view_dims) > 1 and share > DROWNS:
            say(f"simcit: '{name}' has {share:.1%} of the attention; the other views shape codes by the contrast alone")

    def warn(self, blocks: Sequence[Tensor]) -> None:
        """Say what the views do not give: a second side to the contrast, or vectors of most items."""
        if len(blocks) == 1:
            say(f"simcit: '{next(iter(self.view_dims))}' is the only view; it is held against itself, quantised")
        for name, block_NV in zip(self.view_dims, blocks, strict=True):
            share = float(block_NV.any(1).float().mean())
            if share < MOSTLY:
                say(f"simcit: view '{name}' knows {share:.1%} of the items; the others are fused without it")

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

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        return tensors, {**facts, "signs": self.signs}

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        self.signs = facts["signs"]
