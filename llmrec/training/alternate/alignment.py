"""Alignment of the LLM with the item tokenizer: histories are drawn to the codes of the items that follow them.

Sequence-item alignment (SIA): an adapter maps the mean state of a history into the tokenizer's latent space. At each
level, the distribution over codes there and that of the target's latent vector are drawn together.
Preference-semantic alignment (PSA): another adapter maps the state that predicts the target's first code into the space
of item vectors. It must find the target's reconstruction among those of the batch, and the reconstruction must find it.

Source: ETEGRec (arXiv:2409.05546), section 2.3. Departures: the divergence is a positive sum (printed with a leading
minus) of distributions over negative distances (the public fork passes distances); states are those of a decoder-only
LLM (`llmrec.training.alternate.pools`), and adapters start with a LayerNorm, as they read a residual stream.

Shapes: U distinct targets, L levels, K codes of a level, H hidden, E latent dimension, D dimension of item vectors, R
rows of the batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize

from llmrec.tokenizers.etegrec import EndToEnd
from llmrec.training.alternate.pools import Pools, pool_states

ADAPTER_HIDDEN = 512
PSA_TEMPERATURE = 0.07  # ETEGRec's code


class HistoryVectors(NamedTuple):
    """Histories before targets, as vectors of the tokenizer's spaces.

    Attributes:
        sequence: (U, E) vectors of the latent space.
        preference: (U, D) vectors of the space of item vectors.
    """

    sequence: Tensor
    preference: Tensor


class Adapters(nn.Module):
    """Maps from states of the LLM to the tokenizer's spaces, in float32.

    Args:
        hidden: H.
        latent_dim: E.
        dim: D.
        seed: Seed of the initial weights; the global random state does not change.
    """

    def __init__(self, hidden: int, latent_dim: int, dim: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sequence, self.preference = adapter(hidden, latent_dim), adapter(hidden, dim)

    def forward(self, states_RTH: Tensor, pools: Pools) -> HistoryVectors:
        """Pool the states of a batch and map them."""
        with torch.autocast(states_RTH.device.type, enabled=False):
            means_UH, last_UH = pool_states(states_RTH.float(), pools)
            return HistoryVectors(self.sequence(means_UH), self.preference(last_UH))


def adapter(hidden: int, outputs: int) -> nn.Sequential:
    """Make an adapter with its initial weights."""
    return nn.Sequential(
        nn.LayerNorm(hidden), nn.Linear(hidden, ADAPTER_HIDDEN), nn.GELU(), nn.Linear(ADAPTER_HIDDEN, outputs)
    )


def sequence_item_loss(items: Sequence[Tensor], sequences: Sequence[Tensor]) -> Tensor:
    """Symmetric KL divergence between the distributions over codes of targets and of their histories.

    Args:
        items: For each level, (U, K) logits of the targets.
        sequences: For each level, (U, K) logits of the histories before them.

    Returns:
        Scalar, sum over levels and over both directions, mean over targets.

    Source: ETEGRec (arXiv:2409.05546), L_SIA with the sign under which it falls as the two agree. The public fork takes
        the mean over levels, so that its weight is divided by L.
    """
    total = items[0].new_zeros(())
    for item_UK, sequence_UK in zip(items, sequences, strict=True):
        p_UK, q_UK = item_UK.log_softmax(1), sequence_UK.log_softmax(1)
        total = total + kl_divergence(p_UK, q_UK) + kl_divergence(q_UK, p_UK)
    return total


def kl_divergence(p_UK: Tensor, q_UK: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, mean over U."""
    return kl_div(q_UK, p_UK, reduction="batchmean", log_target=True)


def preference_semantic_loss(preference_UD: Tensor, rebuilt_UD: Tensor, temperature: float = PSA_TEMPERATURE) -> Tensor:
    """InfoNCE in both directions: each preference finds the reconstruction of its target, and the other way round.

    Args:
        preference_UD: (U, D) preference vectors of histories.
        rebuilt_UD: (U, D) reconstructions of the targets, which are distinct.
        temperature: Divisor of the cosines.

    Returns:
        Scalar, sum over the directions, mean over targets.

    Source: ETEGRec (arXiv:2409.05546), L_PSA.
    """
    logits_UU = normalize(preference_UD, dim=1) @ normalize(rebuilt_UD, dim=1).T / temperature
    own_U = torch.arange(len(logits_UU), device=logits_UU.device)
    return cross_entropy(logits_UU, own_U) + cross_entropy(logits_UU.T, own_U)


class Losses(NamedTuple):
    """Losses of the targets of a batch, each before its weight.

    Attributes:
        own: Reconstruction, codebook and commitment loss of the tokenizer.
        sia: Sequence-item alignment.
        psa: Preference-semantic alignment.
    """

    own: Tensor
    sia: Tensor
    psa: Tensor

    def detach(self) -> Losses:
        """The same values without gradients."""
        return Losses(*(loss.detach() for loss in self))


def mean_losses(losses: Sequence[Losses]) -> dict[str, float]:
    """Mean of each loss by its name; empty without any."""
    columns = zip(*losses, strict=True)
    return {name: float(torch.stack(values).mean()) for name, values in zip(Losses._fields, columns, strict=False)}


@dataclass(frozen=True)
class Alignment:
    """The alignment losses with their weights.

    Attributes:
        tokenizer: Tokenizer over the vectors of all items.
        sia_weight: Weight of the sequence-item alignment; at 0 it is not computed.
        psa_weight: Weight of the preference-semantic alignment; at 0 it is not computed.
    """

    tokenizer: EndToEnd
    sia_weight: float
    psa_weight: float

    def losses(self, targets_U: Tensor, vectors: HistoryVectors | None) -> Losses:
        """Compute the losses of some targets; a loss that is not computed is 0.

        Args:
            targets_U: (U,) int64 item rows, distinct.
            vectors: Vectors of the histories before them; None if nothing is aligned.
        """
        zero = self.tokenizer.points.new_zeros(())
        if not len(targets_U):
            return Losses(zero, zero, zero)
        points_UD = self.tokenizer.points[targets_U]
        assigned, sia, psa = self.tokenizer.assign(points_UD), zero, zero
        if vectors is not None and self.sia_weight:
            sia = sequence_item_loss(assigned.logits, self.tokenizer.logits(vectors.sequence))
        if vectors is not None and self.psa_weight:
            psa = preference_semantic_loss(vectors.preference, assigned.reconstruction)
        return Losses(self.tokenizer.own_loss(points_UD, assigned), sia, psa)

    def weighted(self, losses: Losses) -> Tensor:
        """Weighted sum of the two alignment losses."""
        return self.sia_weight * losses.sia + self.psa_weight * losses.psa
