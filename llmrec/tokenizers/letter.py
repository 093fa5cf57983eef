"""LETTER: an RQ-VAE whose codes also agree with who consumed the items, and spread over the codebook.

Two losses join those of rq_vae. Alignment: by dot product, the quantised vector of an item must be nearer to the item's
own collaborative vector, which stays as it is, than to those of the other items in the batch. Diversity: the codes of a
level are divided into clusters of one size by k-means; each code in use is drawn to another of its cluster, against all
others, so that the codes cover the latent space in clusters of even size. The collaborative vectors are SASRec's by
default; the co-occurrence view's lengths grow with popularity, which a dot product then rewards.

Source: LETTER (arXiv:2405.07314) and its official code. Departures: the latent dimension is that of the view, theirs is
32; codebooks start by plain k-means (the code's constrained one is infeasible above 51,200 items); clusters follow from
the number of codes, where the code has bounds that fit 256, and are renewed at the first epoch after RECLUSTER_EVERY
steps, where the code renews them every epoch, however short; a code alone in its cluster is left out of the diversity
loss (there the code loops for ever); dead codes restart; training ends at a plateau (training_loop.py), where the code
has 20,000 epochs. The layers are TIGER's; the code has 2048 1024 512 256 128 64 for LLaMA's vectors of 4,096.

Shapes: N items, B of a batch, K codes of a level, D dimension of the vectors, E of the latent and the collaborative
ones, G clusters, M codes of the largest cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.autoencoder import (
    Autoencoder,
    AutoencoderObjective,
    LatentCodebooks,
    start_from_kmeans,
    train_codebooks,
)
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.residual_quantizer import Quantized, ResidualQuantizer
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews

RECLUSTER_EVERY, CLUSTER_ITERATIONS = 100, 10
NEVER = -1e12  # logit of what must not be chosen, as in the released code: finite, so that zero times it is zero


class CodeClusters(NamedTuple):
    """Clusters of the codes of a level.

    Attributes:
        members: (G, M) int64 codes of each cluster, padded.
        cluster: (K,) int64 cluster of each code.
        place: (K,) int64 place of each code in its cluster.
        size: (K,) int64 number of codes in the cluster of each code.
    """

    members: Tensor
    cluster: Tensor
    place: Tensor
    size: Tensor


def clusters_of(cluster_K: Tensor) -> CodeClusters:
    """Make tables for drawing within clusters.

    Args:
        cluster_K: (K,) int64 cluster of each code.
    """
    order_K = cluster_K.argsort(stable=True)
    sizes_G = torch.bincount(cluster_K)
    starts_G = sizes_G.cumsum(0) - sizes_G
    place_K = torch.empty_like(order_K)
    place_K[order_K] = torch.arange(len(cluster_K), device=cluster_K.device) - starts_G[cluster_K[order_K]]
    members_GM = torch.zeros(len(sizes_G), int(sizes_G.max()), dtype=torch.int64, device=cluster_K.device)
    members_GM[cluster_K, place_K] = torch.arange(len(cluster_K), device=cluster_K.device)
    return CodeClusters(members_GM, cluster_K, place_K, sizes_G[cluster_K])


def draw_partners(codes_B: Tensor, clusters: CodeClusters, generator: torch.Generator) -> Tensor:
    """(B,) another code of the cluster of each code, at random; the code itself where it is alone."""
    others_B = clusters.size[codes_B] - 1
    uniform_B = torch.rand(len(codes_B), generator=generator, device=codes_B.device)
    step_B = torch.minimum(1 + (uniform_B * others_B).long(), others_B)
    return clusters.members[clusters.cluster[codes_B], (clusters.place[codes_B] + step_B) % clusters.size[codes_B]]


def diversity_loss(codebook_KE: Tensor, codes_B: Tensor, partners_B: Tensor) -> Tensor:
    """Cross-entropy of finding a code's partner among all codes but itself, by dot product.

    Args:
        codebook_KE: (K, E).
        codes_B: (B,) int64 codes in use.
        partners_B: (B,) int64 their partners; a code that is its own is skipped.

    Returns:
        Scalar, sum over the others divided by B.

    Source: LETTER (arXiv:2405.07314), its diversity loss.
    """
    num_codes = len(codebook_KE)
    own_KK = torch.eye(num_codes, dtype=torch.bool, device=codebook_KE.device)
    log_chance_KK = (codebook_KE @ codebook_KE.T).masked_fill(own_KK, NEVER).log_softmax(1)
    # Counts of the pairs are whole numbers, whose sum does not depend on the order of a GPU's atomic adds.
    times = torch.zeros(num_codes * num_codes, device=codebook_KE.device)
    times.index_add_(0, codes_B * num_codes + partners_B, (codes_B != partners_B).float())
    return -(times * log_chance_KK.flatten()).sum() / len(codes_B)


def alignment_loss(vectors_BE: Tensor, targets_BE: Tensor, has_target_B: Tensor) -> Tensor:
    """Cross-entropy of finding each item's collaborative vector among those of the batch, by dot product.

    Args:
        vectors_BE: (B, E) quantised vectors, with gradient.
        targets_BE: (B, E) collaborative vectors.
        has_target_B: (B,) bool; items without a collaborative vector are neither asked for nor candidates.

    Returns:
        Scalar, mean over items with a target; 0 without any.

    Source: LETTER (arXiv:2405.07314), its collaborative regularisation, in one direction and at temperature 1.
    """
    logits_BB = (vectors_BE @ targets_BE.T).masked_fill(~has_target_B, NEVER)
    own_B = torch.arange(len(vectors_BE), device=vectors_BE.device)
    losses_B = cross_entropy(logits_BB, own_B, reduction="none")
    return torch.where(has_target_B, losses_B, 0).sum() / has_target_B.sum().clamp(min=1)


class CollaborativeTargets(NamedTuple):
    """Collaborative vectors of the items that are quantised.

    Attributes:
        vectors: (N, E) float32.
        known: (N,) bool.
    """

    vectors: Tensor
    known: Tensor


class LetterObjective(AutoencoderObjective):
    """Reconstruction, with alignment and diversity.

    Args:
        points_ND: (N, D) vectors of the items, on one device.
        network: On this device.
        quantizer: On this device.
        targets: Of the same items.
        options: Weights, number of clusters and seed.
    """

    divides = False  # items are compared with the others of their batch

    def __init__(
        self,
        points_ND: Tensor,
        network: Autoencoder,
        quantizer: ResidualQuantizer,
        targets: CollaborativeTargets,
        options: Letter,
    ):
        super().__init__(points_ND, network, quantizer, options.seed)
        self.options = options
        self.targets = CollaborativeTargets(*(part.to(points_ND.device) for part in targets))
        self.clusters: list[CodeClusters] = []
        self.clustered_at = 0

    def main_loss(self, points_BD: Tensor, quantized: Quantized, rows_B: Tensor) -> Tensor:
        aligned = alignment_loss(quantized.vector, self.targets.vectors[rows_B], self.targets.known[rows_B])
        return super().main_loss(points_BD, quantized, rows_B) + self.options.alpha * aligned

    def penalty(self, quantized: Quantized) -> Tensor:
        """Diversity, averaged over levels as the released code has it: its weight is beta / L."""
        levels = zip(self.quantizer.levels, quantized.codes.T, self.clusters, strict=True)
        losses = [
            diversity_loss(codebook_KE, codes_B, draw_partners(codes_B, clusters, self.generator))
            for codebook_KE, codes_B, clusters in levels
        ]
        return self.options.beta * torch.stack(losses).mean()

    def before_epoch(self, step: int) -> None:
        """Cluster the codes of each level anew, if the clusters are old."""
        if self.clusters and step - self.clustered_at < RECLUSTER_EVERY:
            return
        self.clustered_at, self.clusters = step, []
        for codebook_KE in self.quantizer.levels:
            # On the CPU: so few codes would leave a GPU waiting for launches.
            codes_KE, generator = codebook_KE.detach().cpu(), torch.Generator().manual_seed(step)
            count = max(1, min(self.options.num_clusters, len(codes_KE) // 2))
            cluster_K = balanced_kmeans(codes_KE, count, CLUSTER_ITERATIONS, generator)[1]
            self.clusters.append(clusters_of(cluster_K.to(codebook_KE.device)))


@dataclass(kw_only=True)
class Letter(ItemTokenizer):
    """RQ-VAE with collaborative alignment and code diversity."""

    method: ClassVar[str] = "letter"
    reads_all_items: ClassVar[bool] = True
    renamed: ClassVar[dict[str, str]] = {
        "num_groups": "num_clusters",
        "ste": "removed: the gradient passes each level, as in the released code.",
    }

    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(4)
    codebook_size: int = options.codebook_size(256)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(1e-4)
    batch_size: int = options.batch_size(1024)
    max_epochs: int = options.max_epochs(2000)
    patience: int = options.patience(10)
    encoder_layers: list[int] = options.encoder_layers([512, 256, 128])
    commitment: float = options.commitment(0.25)
    sinkhorn_epsilon: float = options.sinkhorn_epsilon(0.003)
    latent_dim: int | None = option(
        "Dimension of the latent vectors that are quantised: that of the collaborative view, which it must equal if "
        "given.",
        None,
        least=1,
    )
    collaborative_view: str = option("Name of the view that codes are aligned with.", "sasrec")
    quantize_collaborative: bool = option("Quantise the collaborative view together with the others.", False)
    # The paper's best; the released script has .01.
    alpha: float = option("Weight of the alignment loss.", 0.02, least=0)
    beta: float = option("Weight of the diversity loss.", 1e-4, least=0)
    num_clusters: int = option("Number of clusters of a level's codes; at most half the number of codes.", 10, least=1)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    @property
    def unquantised_view(self) -> str | None:
        """View that is given and not quantised."""
        return None if self.quantize_collaborative else self.collaborative_view

    def targets(self, views: ItemViews, known: np.ndarray) -> CollaborativeTargets:
        """Collaborative vectors of the items that have a vector to be quantised.

        Args:
            views: Of all items.
            known: (items of the catalogue,) bool, items with such a vector.

        Raises:
            ValueError: If there is no such view, no other next to it, or `latent_dim` is not its dimension.
        """
        view, quantised = views.get(self.collaborative_view), views.keys() - {self.unquantised_view}
        if view is None or not quantised:
            raise ValueError(
                f"letter aligns the codes of other views with the view '{self.collaborative_view}', and the views are "
                f"{list(views)}. Give both, for instance by `llmrec embed --views text sasrec`, or name another view "
                "in collaborative_view."
            )
        dim = view.vectors.shape[1]
        if self.latent_dim not in (None, dim):
            raise ValueError(
                f"latent_dim is {self.latent_dim} but the view '{self.collaborative_view}' has dimension {dim}, and "
                f"letter compares the two; leave latent_dim out, or build the view with {self.latent_dim}."
            )
        return CollaborativeTargets(torch.from_numpy(view.vectors[known]), torch.from_numpy(~view.missing[known]))

    def objective(
        self, points_ND: Tensor, targets: CollaborativeTargets, generator: torch.Generator
    ) -> LetterObjective:
        """The loss that is trained, with its parameters at their start.

        Args:
            points_ND: (N, D) on the device.
            targets: Of the same items.
            generator: CPU generator of the starting weights and codes.
        """
        latent_dim, epsilon = targets.vectors.shape[1], self.sinkhorn_epsilon
        network = Autoencoder(points_ND.shape[1], self.encoder_layers, latent_dim, generator)
        quantizer = ResidualQuantizer(
            self.num_levels, self.codebook_size, latent_dim, self.commitment, sinkhorn_epsilon=epsilon
        )
        return LetterObjective(points_ND, *start_from_kmeans(network, quantizer, points_ND, generator), targets, self)

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors = JointVectors(catalog, views, self.view_weights, self.unquantised_view)
        targets, device = self.targets(views, vectors.known), resolve_device(self.device)
        points_ND = vectors.to_fit(self.codebook_size, all_items=self.holds_all_items).to(device)
        objective = self.objective(points_ND, targets, torch.Generator().manual_seed(self.seed))
        codebooks, result = train_codebooks(objective, self)
        self.coder = VectorCoder(vectors.dims, codebooks, device, self.view_weights, self.unquantised_view)
        self.training_log = [result.log]
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        dims, device = facts["view_dims"], resolve_device(self.device)
        network = Autoencoder(sum(dims.values()), self.encoder_layers, tensors["codebook_0"].shape[1])
        codebooks = LatentCodebooks.restored(tensors, [self.codebook_size] * self.num_levels, network, device)
        self.coder = VectorCoder(dims, codebooks, device, self.view_weights, self.unquantised_view)
