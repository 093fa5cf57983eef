"""Alignment of an LLM with the item tokenizer: what the LLM makes of a history is drawn to the codes of the next item.

Sequence and item (SIA): the mean state of a history goes through an adapter into the tokenizer's latent space, beside
the target's latent vector; at each level their distributions over codes shall agree. Preference and semantics (PSA):
the state that predicts the target's first code goes through another adapter into the space of item vectors, and finds
the target's reconstruction among those of the batch, as the reconstruction finds it.

Source: ETEGRec (arXiv:2409.05546), section 2.3. Departures: the divergence is a positive sum (printed with a leading
minus) of distributions over negative distances (the public fork passes distances); states are those of a decoder-only
LLM (`llmrec.training.alternate.pools`), and adapters start with a LayerNorm, as they read a residual stream.

Shapes: U distinct targets, L levels, K codes of a level, H hidden, E latent dimension, D dimension of item vectors, R
rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize

from llmrec.configs import AlternateConfig
from llmrec.tokenizers.etegrec import EndToEnd
from llmrec.training.alternate.pools import Pools, pooled

ADAPTER_HIDDEN = 512


class Vectors(NamedTuple):
    """What the LLM makes of the histories before targets, in the tokenizer's spaces.

    Attributes:
        sequence: (U, E) beside latent vectors.
        preference: (U, D) beside reconstructions.
    """

    sequence: Tensor
    preference: Tensor


class Adapters(nn.Module):
    """From states to the tokenizer's spaces, in float32.

    Args:
        hidden: H.
        latent_dim: E.
        dim: D.
        seed: Of the first weights; the global random state stays as it is.
    """

    def __init__(self, hidden: int, latent_dim: int, dim: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sequence, self.preference = adapter(hidden, latent_dim), adapter(hidden, dim)

    def forward(self, states_RTH: Tensor, pools: Pools) -> Vectors:
        with torch.autocast(states_RTH.device.type, enabled=False):
            means_UH, last_UH = pooled(states_RTH.float(), pools)
            return Vectors(self.sequence(means_UH), self.preference(last_UH))


def adapter(hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(hidden), nn.Linear(hidden, ADAPTER_HIDDEN), nn.GELU(), nn.Linear(ADAPTER_HIDDEN, outputs)
    )


def sequence_item_loss(items: Sequence[Tensor], sequences: Sequence[Tensor], divergence: str) -> Tensor:
    """Divergence of the distributions over codes that targets and their histories have.

    Args:
        items: Of each level, (U, K) logits of the targets.
        sequences: Of each level, (U, K) logits of the histories before them.
        divergence: symmetric_kl, the sum of both directions; or jensen_shannon.

    Returns:
        Scalar, sum over levels, mean over targets.

    Source: ETEGRec (arXiv:2409.05546), L_SIA with the sign under which it falls as the two agree. The public fork takes
        the mean over levels, so that its weight is divided by L.
    """
    total = 0.0
    for item_UK, sequence_UK in zip(items, sequences, strict=True):
        p, q = item_UK.log_softmax(1), sequence_UK.log_softmax(1)
        if divergence == "jensen_shannon":
            middle = torch.logaddexp(p, q) - math.log(2)
            total = total + (_divergence(p, middle) + _divergence(q, middle)) / 2
        else:
            total = total + _divergence(p, q) + _divergence(q, p)
    return total


def _divergence(p_UK: Tensor, q_UK: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, mean over rows."""
    return kl_div(q_UK, p_UK, reduction="batchmean", log_target=True)


def preference_semantic_loss(preference_UD: Tensor, rebuilt_UD: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions: each preference finds its target's reconstruction, and each reconstruction it.

    Args:
        preference_UD: (U, D) what the LLM makes of histories.
        rebuilt_UD: (U, D) reconstructions of the targets, which are distinct.
        temperature: Divides the cosines.

    Returns:
        Scalar, sum of the directions, mean over targets.

    Source: ETEGRec (arXiv:2409.05546), L_PSA.
    """
    logits_UU = normalize(preference_UD, dim=1) @ normalize(rebuilt_UD, dim=1).T / temperature
    own_U = torch.arange(len(logits_UU), device=logits_UU.device)
    return cross_entropy(logits_UU, own_U) + cross_entropy(logits_UU.T, own_U)


class Losses(NamedTuple):
    """Losses of the targets of a batch, each before its weight.

    Attributes:
        own: Reconstruction, codebook and commitment loss.
        sia: Sequence-item alignment.
        psa: Preference-semantic alignment.
    """

    own: Tensor
    sia: Tensor
    psa: Tensor


def losses_of(config: AlternateConfig, tokenizer: EndToEnd, targets_U: Tensor, vectors: Vectors | None) -> Losses:
    """What tokenizer and LLM are to each other on some targets.

    Args:
        config: Divergence, temperature and weights; a loss whose weight is 0 is 0.
        tokenizer: Over the vectors of all items.
        targets_U: (U,) int64 item rows, distinct.
        vectors: Of the histories before them; None where nothing is aligned.
    """
    nothing = tokenizer.points.new_zeros(())
    if not len(targets_U):
        return Losses(nothing, nothing, nothing)
    points_UD = tokenizer.points[targets_U]
    assigned, sia, psa = tokenizer.assign(points_UD), nothing, nothing
    if vectors is not None and config.sia_weight:
        sia = sequence_item_loss(assigned.logits, tokenizer.logits(vectors.sequence), config.divergence)
    if vectors is not None and config.psa_weight:
        psa = preference_semantic_loss(vectors.preference, assigned.reconstruction, config.psa_temperature)
    return Losses(tokenizer.own_loss(points_UD, assigned), sia, psa)
