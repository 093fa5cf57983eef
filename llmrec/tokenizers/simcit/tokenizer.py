"""SimCIT: codes that agree with every view of an item, learned by contrast through a soft residual quantiser.

Views are encoded and fused by attention (fusion.py). Each level replaces the residual of the latent vector by a mixture
of all its codes (soft_quantizer.py); the sum of the mixtures is contrasted with every view by NT-Xent (contrast.py),
through a linear projection that is thrown away after training. There is no reconstruction and no commitment; a penalty
keeps the codes of a level apart. Semantic IDs are made with nearest codes and what these leave, on which training goes
on once temperature and noise have been annealed. `mismatch` says by how much training and export differ, and a run
whose two part is reported.

A single view is contrasted with itself, quantised; attention plays no part then.

Source: SimCIT (arXiv:2506.16683), known to us by its released code (alibaba/SimCIT) and a digest of the paper. The
defaults are the paper's as far as they are known: 48 codes, 3 levels, a temperature that falls, by a law that is not
known. The released code has 2 levels of 128 codes, codes that start uniform, and constant temperature .2 and noise 1.
Contrast temperature .07 and the penalty are the code's; of the paper it is said that .1 is good and that there is no
penalty (recipes/beauty-simcit has both). Departures: training ends at a plateau of the contrast with nearest codes
(training_loop.py), where the code has up to 15,000 epochs with warm-up and cosine; views are standardised; items that
are all but equal are no negatives of each other; codes start as k-means centres; distances are relative, and codes
hard after annealing (soft_quantizer.py).

Quality rises with the batch, whose other items are the negatives. `micro_batch_size` gives the gradient of the whole
batch in the memory of a part (gradient_cache.py), of encoders and quantiser as of the (B, B) logits. So one device is
enough for any batch, and negatives are not gathered over processes.

Not in the paper, which names it as open: `prefix_weight` asks the codes before the last to find the item too, as far
as they can, so that a prefix by itself tells items apart.

Shapes: N items, B of a batch, b of a part of it, M views, L levels, A anchors of an item, K codes of a level, D sum of
the view dimensions, E latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import LatentCodebooks
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.training_loop import Objective, train
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import CHUNK, JointVectors
from llmrec.tokenizers.simcit.contrast import nt_xent
from llmrec.tokenizers.simcit.fusion import Fusion, linear
from llmrec.tokenizers.simcit.gradient_cache import in_parts
from llmrec.tokenizers.simcit.metrics import metrics_in_words, quantiser_metrics
from llmrec.tokenizers.simcit.soft_quantizer import Annealing, Law, SoftQuantizer
from llmrec.views import ItemViews

PARTED = 0.1  # share of items of another code in training than in export; above it a run is reported
MOSTLY = 0.5  # a view that knows a smaller share of the items is reported
DOMINANT = 0.95  # a view of several that has a larger share of the attention is reported


class SimCITObjective(Objective):
    """Contrast of the quantised fusion with each view, and the similarity of the codes.

    Args:
        points_ND: (N, D) views of the items side by side, on one device.
        network: On this device, as are quantizer and projection.
        quantizer: Of the latent vectors.
        projection: Of anchors and views, before they are compared.
        view_names: Of the M views.
        options: Weights, laws of annealing and seed.
    """

    def __init__(
        self,
        points_ND: Tensor,
        network: Fusion,
        quantizer: SoftQuantizer,
        projection: nn.Module,
        view_names: Sequence[str],
        options: SimCIT,
    ):
        super().__init__()
        self.points, self.network, self.quantizer, self.projection = points_ND, network, quantizer, projection
        self.view_names, self.options, self.least_steps = list(view_names), options, options.least_steps
        self.view_weights = torch.tensor(options.view_weights or [1.0] * len(network.dims), device=points_ND.device)
        self.generator = torch.Generator(points_ND.device).manual_seed(options.seed)
        self.anneal(0)

    def loss(self, rows_B: Tensor) -> Tensor:
        contrast = self.contrast(rows_B, self.quantizer.draw(len(rows_B), self.generator))
        return contrast + self.options.code_similarity * self.quantizer.similarity()

    def validation_loss(self, rows_B: Tensor) -> Tensor:
        return self.contrast(rows_B, None)

    def contrast(self, rows_B: Tensor, noise: list[Tensor] | None) -> Tensor:
        """Sum over views, with the mixtures of training, or with nearest codes where noise is None."""
        points_BD, size = self.points[rows_B], self.options.micro_batch_size

        def represent(points_bD: Tensor, *noise_bK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Anchors (b, A, E), views (b, M, E) and a mask of those that are known (b, M)."""
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
        """Set temperature, noise and hardness to their values after a step."""
        self.quantizer.temperature.fill_(self.options.annealing("temperature").at(step))
        self.quantizer.noise.fill_(self.options.annealing("noise").at(step))
        self.quantizer.hardness.fill_(self.options.hard_codes and step >= self.options.anneal_steps)

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> None:
        self.anneal(step)

    def metrics(self, rows_N: Tensor) -> JsonObject:
        seed = self.options.seed
        return quantiser_metrics(self.points, rows_N, self.network, self.quantizer, self.view_names, seed)


@dataclass
class FusedCodebooks(LatentCodebooks):
    """Codebooks of fused views, with the metrics of all items at the end of training."""

    metrics: JsonObject = field(default_factory=dict)

    def facts(self) -> JsonObject:
        """The metrics, under the name that files have had from the first version on."""
        return {"signs": self.metrics}


@dataclass(kw_only=True)
class SimCIT(ItemTokenizer):
    """Soft residual quantisation of fused views, trained by contrast with each of them."""

    method: ClassVar[str] = "simcit"

    view_weights: list[float] | None = option("Weight of the contrast with each of `view_names`.", None, above=0)
    num_levels: int = options.num_levels(3)  # released: 2
    codebook_size: int = options.codebook_size(48)  # AMap: 128; released: 128
    learning_rate: float = options.learning_rate(2e-4)
    weight_decay: float = options.weight_decay(1e-3)
    # released: 256
    batch_size: int = option("Number of items of a training step, which are each other's negatives.", 1024, least=2)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = option(
        "Sizes of the hidden layers of the encoder of each view.", [512, 384, 256], least=1
    )
    latent_dim: int = options.latent_dim(128)
    micro_batch_size: int | None = option(
        "Number of items that are encoded at once, which bounds the memory; the gradient is that of the whole batch. "
        "All of them when left out.",
        None,
        least=1,
    )
    contrast_temperature: float = option("Temperature that divides the cosines of the contrastive loss.", 0.07, above=0)
    projection: bool = option("Contrast through a linear layer, which is dropped after training.", True)
    prefix_weight: float = option(
        "Weight of the mean contrast of the codes up to each level but the last; 0 contrasts all codes together only.",
        0.0,
        least=0,
    )
    code_similarity: float = option("Weight of the mean cosine between codes of a level.", 1.0, least=0)
    codebook_start: Literal["uniform", "kmeans"] = option(
        "Starting codes: uniform in [0, 1), as released, or k-means centres of the first latent vectors.", "kmeans"
    )
    anneal_steps: int = option("Number of steps until temperature and noise reach their end.", 1000, least=1)
    distances: Literal["relative", "absolute"] = option(
        "Squared distances that temperature and noise compete with: in units of their standard deviation over the "
        "codes of a level, or as they are, as released.",
        "relative",
    )
    hard_codes: bool = option(
        "Train on nearest codes once annealing has ended, with the gradient of the mixtures; otherwise on mixtures, as "
        "released.",
        True,
    )
    temperature_law: Law = option(
        "Law by which the temperature of the mixtures falls.", "exponential"
    )  # released: constant
    temperature: float = option("Temperature of the mixtures at the start.", 1.0, above=0)  # released: .2
    temperature_end: float = option("Temperature of the mixtures after annealing.", 0.1, above=0)
    noise_law: Law = option("Law by which the scale of the Gumbel noise falls.", "linear")  # released: constant
    noise: float = option("Scale of the Gumbel noise at the start.", 1.0, least=0)
    noise_end: float = option(
        "Scale of the Gumbel noise after annealing; above 0 for an exponential law.", 0.0, least=0
    )

    def problems(self) -> list[str]:
        problems = []
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

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def annealing(self, name: Literal["temperature", "noise"]) -> Annealing:
        """The temperature, or the scale of the noise, as a function of the step."""
        law, start, end = (getattr(self, name + part) for part in ("_law", "", "_end"))
        return Annealing(law, start, end, self.anneal_steps)

    @property
    def least_steps(self) -> int:
        """Steps before which a plateau is no end: the loss may still fall with temperature and noise."""
        changes = self.hard_codes or not self.temperature_law == self.noise_law == "constant"
        return self.anneal_steps if changes else 0

    def objective(self, points_ND: Tensor, view_dims: dict[str, int], generator: torch.Generator) -> SimCITObjective:
        """The loss that is trained, with its parameters at their start.

        Args:
            points_ND: (N, D) on the device.
            view_dims: View -> dimension, whose sum is D.
            generator: CPU generator of the starting weights and codes.
        """
        device = points_ND.device
        network = Fusion(list(view_dims.values()), self.encoder_layers, self.latent_dim, generator).to(device)
        network.standardize(points_ND)
        is_relative = self.distances == "relative"
        quantizer = SoftQuantizer(self.num_levels, self.codebook_size, self.latent_dim, generator, is_relative)
        quantizer.to(device)
        if self.codebook_start == "kmeans":
            with torch.no_grad():
                quantizer.start(torch.cat([network.encode(part) for part in points_ND.split(CHUNK)]), generator)
        projection = linear(self.latent_dim, self.latent_dim, True, generator) if self.projection else nn.Identity()
        return SimCITObjective(points_ND, network, quantizer, projection.to(device), list(view_dims), self)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors, device = JointVectors(catalog, views, self.view_weights), resolve_device(self.device)
        points_ND = vectors.to_fit(self.codebook_size if self.codebook_start == "kmeans" else 2).to(device)
        objective = self.objective(points_ND, vectors.dims, torch.Generator().manual_seed(self.seed))
        report_views(objective)
        result = train(objective, len(points_ND), device, self)
        metrics = objective.metrics(torch.arange(len(points_ND), device=device))
        say(f"simcit: {result}; {metrics_in_words(metrics, self.codebook_size)}")
        report_parting(result.log)
        name, share = max(metrics["attention"].items(), key=lambda entry: entry[1])
        if len(vectors.dims) > 1 and share > DOMINANT:
            say(f"simcit: '{name}' has {share:.1%} of the attention; the other views shape codes by the contrast alone")
        books = [codebook_KE.detach().clone() for codebook_KE in objective.quantizer.codebooks]
        network = objective.network.requires_grad_(False)
        codebooks = FusedCodebooks(network, ResidualCodebooks(books), metrics)
        self.coder = VectorCoder(vectors.dims, codebooks, device, self.view_weights, latent=network.encode)
        self.training_log, self.counts = [result.log], {"mismatch": metrics["mismatch"]}
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims, device = facts["view_dims"], resolve_device(self.device)
        network = Fusion(list(dims.values()), self.encoder_layers, self.latent_dim)
        read = LatentCodebooks.restored(tensors, [self.codebook_size] * self.num_levels, network, device)
        codebooks = FusedCodebooks(read.network, read.codebooks, facts["signs"])
        self.coder = VectorCoder(dims, codebooks, device, self.view_weights, latent=network.encode)


def report_views(objective: SimCITObjective) -> None:
    """Report views that give too little: a single one, and those that miss most items."""
    blocks = objective.network.blocks(objective.points)
    if len(blocks) == 1:
        say(f"simcit: '{objective.view_names[0]}' is the only view; it is contrasted with itself, quantised")
    for name, block_NV in zip(objective.view_names, blocks, strict=True):
        share = float(block_NV.any(1).float().mean())
        if share < MOSTLY:
            say(f"simcit: view '{name}' knows {share:.1%} of the items; the others are fused without it")


def report_parting(log: Sequence[JsonObject]) -> None:
    """Report a training whose mixtures have other codes than are exported, at its end or at the step that is kept."""
    last, kept = log[-1], min(log, key=lambda reading: reading["loss"])
    at_end, at_kept = max(last["mismatch"]), max(kept["mismatch"])
    if max(at_end, at_kept) > PARTED:
        say(
            f"simcit: training mixes other codes than are exported, at a level for {at_kept:.1%} of the items at step "
            f"{kept['step']}, which is kept, and for {at_end:.1%} at step {last['step']}, the last. Train past "
            "anneal_steps with hard_codes, or set distances to relative and noise_end well above temperature_end."
        )
