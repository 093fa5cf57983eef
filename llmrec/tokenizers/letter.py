"""LETTER: an RQ-VAE whose codes also agree with who consumed the items, and spread over the codebook.

Two losses join those of rq_vae. Alignment: by dot product, the quantised vector of an item must be nearer to the item's
own collaborative vector, which stays as it is, than to those of the other items in the batch. Diversity: the codes of a
level are divided into groups of one size by k-means; each code in use is drawn to another of its group, against all
others, so that the codes cover the latent space in clusters of even size.

Source: LETTER (arXiv:2405.07314) and its official code. Departures: codebooks start by plain k-means (the code's
constrained one is infeasible above 51,200 items); groups follow from the number of codes, where the code has bounds
that fit 256, and are renewed at the first epoch after REGROUP_EVERY steps, where the code renews them every epoch,
however short; a code alone in its group is left out of the diversity loss (there the code loops for ever); dead codes
restart; training ends at a plateau (plateau.py), where the code has 20,000 epochs. The layers are TIGER's; the code has
2048 1024 512 256 128 64 for LLaMA's vectors of 4,096.

Shapes: N items, B rows, K codes of a level, D dimension of the vectors, E of the latent and the collaborative ones, G
groups, M codes of the largest group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.tokenizers.shared.autoencoder import Autoencoder, AutoencoderTokenizer, Autoencoding
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.residual_quantizer import Quantized, ResidualQuantizer
from llmrec.tokenizers.shared.vectors import require_rows
from llmrec.views import ItemViews

REGROUP_EVERY, GROUP_ITERATIONS = 100, 10
NEVER = -1e12  # logit of what must not be chosen, as in the released code: finite, so that zero times it is zero


class Groups(NamedTuple):
    """Groups of the codes of a level.

    Attributes:
        members: (G, M) int64 codes of each group, padded.
        group: (K,) int64 group of each code.
        place: (K,) int64 place of each code in its group.
        size: (K,) int64 number of codes in the group of each code.
    """

    members: Tensor
    group: Tensor
    place: Tensor
    size: Tensor


def groups_of(group_K: Tensor) -> Groups:
    """Tables for drawing within groups.

    Args:
        group_K: (K,) int64 group of each code.
    """
    order_K = group_K.argsort(stable=True)
    sizes_G = torch.bincount(group_K)
    starts_G = sizes_G.cumsum(0) - sizes_G
    place_K = torch.empty_like(order_K)
    place_K[order_K] = torch.arange(len(group_K), device=group_K.device) - starts_G[group_K[order_K]]
    members_GM = torch.zeros(len(sizes_G), int(sizes_G.max()), dtype=torch.int64, device=group_K.device)
    members_GM[group_K, place_K] = torch.arange(len(group_K), device=group_K.device)
    return Groups(members_GM, group_K, place_K, sizes_G[group_K])


def draw_partners(codes_B: Tensor, groups: Groups, generator: torch.Generator) -> Tensor:
    """(B,) another code of the group of each code, at random; the code itself where it is alone."""
    others_B = groups.size[codes_B] - 1
    uniform_B = torch.rand(len(codes_B), generator=generator, device=codes_B.device)
    step_B = torch.minimum(1 + (uniform_B * others_B).long(), others_B)
    return groups.members[groups.group[codes_B], (groups.place[codes_B] + step_B) % groups.size[codes_B]]


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
    # How often each pair occurs: whole numbers, whose sum does not depend on the order of the day on a GPU.
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


class Targets(NamedTuple):
    """Collaborative vectors of the items.

    Attributes:
        vectors: (N, E) float32.
        known: (N,) bool.
    """

    vectors: Tensor
    known: Tensor


class Aligning(Autoencoding):
    """Autoencoding with alignment and diversity."""

    def __init__(
        self,
        points_ND: Tensor,
        network: Autoencoder,
        quantizer: ResidualQuantizer,
        options: Letter,
        targets: Targets,
    ):
        super().__init__(points_ND, network, quantizer, options.seed)
        self.alpha, self.beta, self.num_groups = options.alpha, options.beta, options.num_groups
        self.targets = Targets(*(part.to(points_ND.device) for part in targets))
        self.groups: list[Groups] = []
        self.grouped_at = 0

    def objective(self, points_BD: Tensor, quantized: Quantized, rows_B: Tensor) -> Tensor:
        aligned = alignment_loss(quantized.vector, self.targets.vectors[rows_B], self.targets.known[rows_B])
        return super().objective(points_BD, quantized, rows_B) + self.alpha * aligned

    def penalty(self, quantized: Quantized) -> Tensor:
        """Diversity, averaged over levels as the released code has it: its weight is beta / L."""
        losses = [
            diversity_loss(codebook_KE, codes_B, draw_partners(codes_B, groups, self.generator))
            for codebook_KE, codes_B, groups in zip(self.quantizer.levels, quantized.codes.T, self.groups, strict=True)
        ]
        return self.beta * torch.stack(losses).mean()

    def before_epoch(self, step: int) -> None:
        if self.groups and step - self.grouped_at < REGROUP_EVERY:
            return
        self.grouped_at, self.groups = step, []
        for codebook_KE in self.quantizer.levels:
            # On the CPU: so few codes would leave a GPU waiting for launches.
            codes_KE, generator = codebook_KE.detach().cpu(), torch.Generator().manual_seed(step)
            count = max(1, min(self.num_groups, len(codes_KE) // 2))
            group_K = balanced_kmeans(codes_KE, count, GROUP_ITERATIONS, generator, solver="prices")[1]
            self.groups.append(groups_of(group_K.to(codebook_KE.device)))


@dataclass(kw_only=True)
class Letter(AutoencoderTokenizer):
    """RQ-VAE with collaborative alignment and code diversity."""

    method: ClassVar[str] = "letter"

    num_levels: int = option("Codes per item, before a collision suffix.", 4, least=1)
    latent_dim: int | None = option(
        "Dimension of what is quantised: that of the collaborative view, which it must equal if given.", None, least=1
    )
    sinkhorn_epsilon: float = option("Even use of the last level in training; 0 turns it off.", 0.003, least=0)
    collaborative_view: str = option("View that codes are aligned with.", "collaborative")
    quantize_collaborative: bool = option("Quantise the collaborative view beside the others as well.", False)
    # The paper's best; the released script has .01.
    alpha: float = option("Weight of the alignment.", 0.02, least=0)
    beta: float = option("Weight of the diversity.", 1e-4, least=0)
    num_groups: int = option("Groups of codes of a level; half as many as codes at most.", 10, least=1)

    def __post_init__(self):
        super().__post_init__()
        self._targets: Targets | None = None

    def inputs(self, views: ItemViews) -> ItemViews:
        if self.quantize_collaborative:
            return views
        return ItemViews({name: view for name, view in views.items() if name != self.collaborative_view})

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        require_rows(catalog, views)
        self._targets = self._collaborative(views)
        return super().fit(catalog, views)

    def _collaborative(self, views: ItemViews) -> Targets:
        """Collaborative vectors of the items that have a vector to be quantised.

        Raises:
            ValueError: If there is no such view, no other beside it, or `latent_dim` is not its dimension.
        """
        view, inputs = views.get(self.collaborative_view), self.inputs(views)
        if view is None or not inputs:
            raise ValueError(
                f"letter aligns the codes of other views with the view '{self.collaborative_view}', and the views are "
                f"{list(views)}. Give both, for instance by `llmrec embed --views text collaborative`, or name another "
                "view in collaborative_view."
            )
        dim = view.vectors.shape[1]
        if self.latent_dim not in (None, dim):
            raise ValueError(
                f"latent_dim is {self.latent_dim} but the view '{self.collaborative_view}' has dimension {dim}, and "
                f"letter compares the two; leave latent_dim out, or build the view with {self.latent_dim}."
            )
        known_N = torch.from_numpy(inputs.known)
        return Targets(torch.from_numpy(view.vectors)[known_N], ~torch.from_numpy(view.missing)[known_N])

    def learner(self, points_ND: Tensor, generator: torch.Generator) -> Autoencoding:
        parts = self.parts(points_ND, self._targets.vectors.shape[1], generator)
        return Aligning(points_ND, *parts, self, self._targets)
