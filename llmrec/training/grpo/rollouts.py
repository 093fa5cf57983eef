"""Roll-outs: SIDs that the model recommends after each history, drawn on the weights of the current step.

    sampled   independent draws from the policy, so that a likely SID may come up several times
    distinct  draws without replacement, each with the importance weight that keeps the gradient unbiased
              (`llmrec.training.grpo.advantages`)
    beams     the best SIDs by tree beam search, trained as if they were draws, as in MiniOneRec (arXiv:2510.24431) and
              OneRec: biased, because only items that the policy already finds likely are compared

The policy is the model over the legal children of each prefix, without dropout: the probabilities of all SIDs sum to 1.
The decoder is the one of evaluation and serving.

An injected target takes the last place of a group that has not drawn it. Under `distinct` it is always taken and its
weight is its probability, which keeps the estimate unbiased; otherwise it is trained as if it had been drawn.

Departure: MiniOneRec injects by overwriting once per distinct target of a batch; here each prompt has its own target.

Shapes: U groups, G roll-outs of a group, L levels, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.ranker import PADDING, SidRanker
from llmrec.decoding.sampling import Draws, Generators, tree_sample
from llmrec.training.grpo.advantages import importance_weights


@dataclass(frozen=True)
class RollOutSample:
    """The roll-outs of U prompts.

    Attributes:
        leaves: (U, G) leaf rank of each SID in the trie.
        log_probs: (U, G) float64 log-probability of each; -inf for an injected target whose probability is not needed.
        weights: (U, G) importance weights, whose sum over a group has expectation 1; None where all count alike.
        is_injected: (U,) bool, whether the target is there only because it was injected.
    """

    leaves: Tensor
    log_probs: Tensor
    weights: Tensor | None
    is_injected: Tensor


def roll_out(
    ranker: SidRanker,
    histories: Sequence[np.ndarray],
    targets: Tensor | None,
    count: int,
    way: Literal["sampled", "distinct", "beams"],
    generator: Generators,
) -> RollOutSample:
    """Draw the roll-outs of each history.

    Args:
        ranker: The model that trains, with its trie and prompt.
        histories: U arrays of item rows.
        targets: (U, 1) leaf ranks to inject where they are not drawn; None injects nothing.
        count: G, roll-outs of each history.
        way: How to draw them; see the file header.
        generator: Source of randomness, on the device of the model; see `tree_sample`.

    Raises:
        ScoresNotFinite: If the model gives a SID the probability NaN.
    """
    ids, mask = ranker.encode(histories)
    prompts, sids = (ranker.model, ids, mask), (ranker.trie, ranker.sid_config.vocabulary)
    if way == "distinct":
        # One draw more than needed: its key is the threshold of the weights.
        draws = tree_sample(*prompts, *sids, count + 1, generator=generator, prefix_ids=ranker.prefix_ids)
        draws = cast(Draws, draws)  # without replacement; the annotation of `tree_sample` covers both ways
        if targets is None:
            return weighted(draws, count)
        return always_taken(draws, count, targets, target_log_probs(ranker, histories, targets))
    if way == "sampled":
        beams = tree_sample(*prompts, *sids, count, True, generator=generator, prefix_ids=ranker.prefix_ids)
    else:
        beams = tree_beam_search(*prompts, *sids, count, "children", prefix_ids=ranker.prefix_ids)
    return injected(beams.leaves, beams.scores.double(), targets)


def target_log_probs(ranker: SidRanker, histories: Sequence[np.ndarray], targets: Tensor) -> Tensor:
    """(U, 1) float64 log-probabilities of the targets, by the forward pass in which training scores them."""
    tokens = ranker.sid_config.vocabulary.token_ids(ranker.trie.codes_of(targets).cpu().numpy())
    ids, mask = ranker.encoder.pad_prompts(ranker.prefix_ids.tolist(), histories, PADDING)
    arrays = {"input_ids": ids, "attention_mask": mask, "completions": tokens}
    asked = {name: torch.from_numpy(array).to(targets.device) for name, array in arrays.items()}
    return ranker.model(**asked).log_probs.double().sum(dim=2)


def weighted(draws: Draws, count: int) -> RollOutSample:
    """The first `count` draws without replacement; the key of the next draw is the threshold of their weights."""
    leaves, log_probs, keys = _columns(draws, count + 1)
    weights = importance_weights(log_probs[:, :count], keys[:, count])
    none = torch.zeros(len(leaves), dtype=torch.bool, device=leaves.device)
    return RollOutSample(leaves[:, :count], log_probs[:, :count], weights, none)


def always_taken(draws: Draws, count: int, targets: Tensor, log_probs: Tensor) -> RollOutSample:
    """`count` - 1 of the SIDs drawn that are not the target, then the target, which weighs its own probability.

    Args:
        draws: `count` + 1 SIDs of each prompt, drawn without replacement.
        count: G.
        targets: (U, 1) leaf ranks.
        log_probs: (U, 1) log-probabilities of the targets.
    """
    leaves, others_log_probs, keys = _columns(draws, count + 1)
    is_target = leaves == targets
    others = is_target.byte().argsort(dim=1, stable=True)
    leaves, others_log_probs, keys = (each.gather(1, others) for each in (leaves, others_log_probs, keys))
    weights = importance_weights(others_log_probs[:, : count - 1], keys[:, count - 1])
    return RollOutSample(
        torch.cat([leaves[:, : count - 1], targets], dim=1),
        torch.cat([others_log_probs[:, : count - 1], log_probs], dim=1),
        torch.cat([weights, log_probs.exp()], dim=1),
        ~is_target[:, :count].any(dim=1),
    )


def injected(leaves: Tensor, log_probs: Tensor, targets: Tensor | None) -> RollOutSample:
    """Roll-outs that count alike, with the target (U, 1) in the last place of the groups that lack it."""
    if targets is None:
        return RollOutSample(leaves, log_probs, None, torch.zeros(len(leaves), dtype=torch.bool, device=leaves.device))
    lacks = ~(leaves == targets).any(dim=1)
    is_last = torch.arange(leaves.shape[1], device=leaves.device) == leaves.shape[1] - 1
    is_replaced = lacks.unsqueeze(1) & is_last
    leaves = torch.where(is_replaced, targets, leaves)
    return RollOutSample(leaves, log_probs.masked_fill(is_replaced, -torch.inf), None, lacks)


def _columns(draws: Draws, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves, log-probabilities and keys with `width` columns, unfilled where the catalogue has no more SIDs."""
    missing = (0, width - draws.leaves.shape[1])
    return (
        pad(draws.leaves, missing, value=-1),
        pad(draws.scores.double(), missing, value=-torch.inf),
        pad(draws.keys.double(), missing, value=-torch.inf),
    )
