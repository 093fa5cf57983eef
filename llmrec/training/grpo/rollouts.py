"""Roll-outs: groups of SIDs that the model, as it stands, recommends after histories, with what GRPO learns from them.

    sampled   independent draws from the policy, so that a likely SID may come up several times
    distinct  draws without replacement, each with the importance weight that keeps the gradient unbiased
              (`llmrec.training.grpo.advantages`)
    beams     the best SIDs by tree beam search, trained as if they were draws, as MiniOneRec (arXiv:2510.24431) and
              OneRec do: biased, since what the policy thinks likely is all it is judged on

The policy is the model's over the legal children of each prefix, at a temperature, without dropout: the probabilities
of all SIDs sum to 1. The decoder is the one of evaluation and serving, on the very weights that train.

An injected target takes the last place of a group that has not drawn it. In `distinct` it is always taken, with its
probability as its weight, which keeps the estimate unbiased; elsewhere it is trained as if it had been drawn.

Departure: MiniOneRec injects by overwriting per distinct target of a batch; here each prompt has its own.

Shapes: U groups, G roll-outs of a group, L levels, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrec.configs import GrpoConfig
from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.sampling import Draws, tree_sample
from llmrec.sid.table import EMPTY
from llmrec.training.grpo.advantages import distinct_advantages, group_advantages, importance_weights, is_idle
from llmrec.training.grpo.rewards import Groups, WeightedRewards
from llmrec.training.trainer import DIVERGED


class RollOutSample(NamedTuple):
    """What a way of rolling out gives for each group.

    Attributes:
        leaves: (U, G) leaf rank of each SID.
        log_probs: (U, G) float64 log-probability of each; -inf where an injected target's was not asked for.
        weights: (U, G) importance weights, of expectation 1 as a sum over a group; None where all count alike.
    """

    leaves: Tensor
    log_probs: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Group:
    """The roll-outs of one prompt.

    Attributes:
        prompt: Token ids.
        completions: G SIDs as token ids.
        rewards: (G,) of each reward by its name.
        advantages: (G,).
        weights: (G,) factor of each roll-out in the loss; 1 where all count alike.
        expected_reward: What the group says of the policy's expected reward; of beams and injected targets, their mean.
        is_idle: Whether all rewards are equal, so that there is nothing to learn.
        is_hit: Whether the policy drew the target by itself.
        num_distinct: Different SIDs among the completions.
    """

    prompt: list[int]
    completions: list[list[int]]
    rewards: dict[str, np.ndarray]
    advantages: np.ndarray
    weights: np.ndarray
    expected_reward: float
    is_idle: bool
    is_hit: bool
    num_distinct: int


class RollOuts:
    """Draws groups for training examples.

    Args:
        ranker: The model that trains, with its trie, encoder and prefix.
        sequences: Item rows of each example: a history, then its target.
        rewards: What a roll-out is worth.
        config: Of the stage.
    """

    def __init__(
        self, ranker: SidRanker, sequences: Sequence[np.ndarray], rewards: WeightedRewards, config: GrpoConfig
    ):
        self.ranker, self.sequences, self.rewards, self.config = ranker, sequences, rewards, config
        self.vocabulary, self.trie = ranker.sid_config.vocabulary, ranker.trie

    @torch.no_grad()
    def draw(self, places: Sequence[int], generator: torch.Generator) -> list[Group]:
        """Groups of some examples, rewarded.

        Args:
            places: U positions among the examples.
            generator: Source of randomness, on the device of the model.

        Raises:
            ValueError: If the model gives no probabilities any more.
        """
        sequences = [self.sequences[place] for place in places]
        histories = [sequence[:-1][-self.ranker.sid_config.max_history :] for sequence in sequences]
        targets = np.array([sequence[-1] for sequence in sequences])
        drawn, is_injected = self._roll_out(histories, targets, generator)
        if bool(drawn.log_probs.isnan().any()):
            raise ValueError(f"No items can be drawn: {DIVERGED}")
        assert bool((drawn.leaves >= 0).all()), "a roll-out is no item"
        groups = self.described(histories, targets, drawn)
        rewards, by_name = self.rewards(groups)
        advantages, weights = self._advantages(torch.from_numpy(rewards), drawn)
        is_hit = groups.hits.any(axis=1) & ~is_injected
        idle = is_idle(torch.from_numpy(rewards)).tolist()
        return [
            Group(
                self.ranker.prompt(history),
                [sid[sid != EMPTY].tolist() for sid in self.vocabulary.token_ids(groups.codes[u])],
                {name: values[u] for name, values in by_name.items()},
                advantages[u].numpy(),
                weights[u].numpy(),
                float((weights[u].numpy() * rewards[u]).mean()),
                idle[u],
                bool(is_hit[u]),
                len(np.unique(drawn.leaves[u].cpu())),
            )
            for u, history in enumerate(histories)
        ]

    def described(self, histories: Sequence[np.ndarray], targets: np.ndarray, drawn: RollOutSample) -> Groups:
        """Roll-outs as rewards see them."""
        leaves, owners = drawn.leaves.cpu().numpy(), self.trie.owners
        place, of_target = owners.entries(targets)
        pairs = np.arange(len(targets))[:, None] * self.trie.num_leaves + leaves
        hits = np.isin(pairs, place * self.trie.num_leaves + of_target)
        first = owners.rows[leaves if owners.starts is None else owners.starts[leaves]]
        return Groups(
            histories,
            targets,
            self._codes(self.leaves_of(targets)),
            np.where(hits, targets[:, None], first),
            self._codes(drawn.leaves),
            drawn.log_probs.cpu().numpy(),
        )

    def leaves_of(self, targets: np.ndarray) -> Tensor:
        """(U,) leaf of each target, the first in the order of the trie where it has several."""
        place, leaves = self.trie.owners.entries(targets)
        return torch.from_numpy(leaves[np.unique(place, return_index=True)[1]].astype(np.int64)).to(self.trie.device)

    def _codes(self, leaves: Tensor) -> np.ndarray:
        return self.trie.codes_of(leaves).cpu().numpy()

    def _roll_out(
        self, histories: Sequence[np.ndarray], targets: np.ndarray, generator: torch.Generator
    ) -> tuple[RollOutSample, np.ndarray]:
        """What was drawn, and (U,) bool, which targets are there by injection alone."""
        ids, mask = self.ranker.encode(histories)
        target = self.leaves_of(targets).unsqueeze(1) if self.config.inject_target else None  # (U, 1)
        if self.config.rollouts == "distinct":
            drawn, found = self._distinct(ids, mask, target, generator)
        else:
            drawn, found = _injected(*self._search(ids, mask, generator), target)
        return drawn, np.zeros(len(targets), bool) if target is None else ~found.cpu().numpy()

    def _search(self, ids: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(U, G) leaves and log-probabilities of independent draws or of beams."""
        options = {"prefix_ids": self.ranker.prefix_ids}
        where, count = (self.ranker.model, ids, mask, self.trie, self.vocabulary), self.config.num_generations
        if self.config.rollouts == "beams":
            beams = tree_beam_search(*where, count, "children", **options)
        else:
            beams = tree_sample(*where, count, True, self.config.temperature, generator, **options)
        return beams.leaves, beams.scores.double()

    def _distinct(
        self, ids: Tensor, mask: Tensor, target: Tensor | None, generator: torch.Generator
    ) -> tuple[RollOutSample, Tensor]:
        """Draws without replacement with their weights, and (U,) bool, whether the target is among those drawn."""
        count, options = self.config.num_generations, {"prefix_ids": self.ranker.prefix_ids}
        draws = tree_sample(
            self.ranker.model, ids, mask, self.trie, self.vocabulary, count + 1, False, self.config.temperature,
            generator, **options,
        )  # fmt: skip
        if target is None:
            return weighted(draws, count), torch.zeros(len(ids))
        return always_taken(draws, count, target, self._log_prob(ids, mask, target))

    def _log_prob(self, ids: Tensor, mask: Tensor, leaves: Tensor) -> Tensor:
        """(U, M) log-probability of (U, M) leaves, by the forward that training scores them in."""
        prefix = self.ranker.prefix_ids.expand(len(ids), -1)
        tokens = torch.from_numpy(self.vocabulary.token_ids(self._codes(leaves))).to(ids.device)
        ids, mask = torch.cat([prefix, ids], dim=1), torch.cat([torch.ones_like(prefix), mask], dim=1)
        return self.ranker.model(input_ids=ids, attention_mask=mask, completions=tokens).log_probs.double().sum(dim=2)

    def _advantages(self, rewards_UG: Tensor, drawn: RollOutSample) -> tuple[Tensor, Tensor]:
        """(U, G) advantages, and (U, G) factors of the roll-outs in the loss."""
        divide = self.config.loss != "dr_grpo"
        if drawn.weights is None:
            return group_advantages(rewards_UG, divide), torch.ones_like(rewards_UG)
        log_probs, weights = drawn.log_probs.cpu(), drawn.weights.cpu()
        return distinct_advantages(rewards_UG, log_probs, weights, divide), weights * rewards_UG.shape[1]


def _injected(leaves: Tensor, log_probs: Tensor, target: Tensor | None) -> tuple[RollOutSample, Tensor]:
    """The target (U, 1) in the last place of groups that lack it, and (U,) bool, which had it."""
    if target is None:
        return RollOutSample(leaves, log_probs, None), torch.zeros(len(leaves))
    found = (leaves == target).any(dim=1)
    is_replaced = ~found.unsqueeze(1) & (torch.arange(leaves.shape[1], device=leaves.device) == leaves.shape[1] - 1)
    leaves = torch.where(is_replaced, target, leaves)
    return RollOutSample(leaves, log_probs.masked_fill(is_replaced, -torch.inf), None), found


def weighted(draws: Draws, count: int) -> RollOutSample:
    """The first `count` of draws without replacement; the key of the next is the threshold of their weights."""
    leaves, log_probs, keys = _columns(draws, count + 1)
    weights = importance_weights(log_probs[:, :count], keys[:, count])
    return RollOutSample(leaves[:, :count], log_probs[:, :count], weights)


def always_taken(draws: Draws, count: int, target: Tensor, log_prob: Tensor) -> tuple[RollOutSample, Tensor]:
    """`count` - 1 of the SIDs drawn that are not the target, then the target, which weighs its own probability.

    Args:
        draws: `count` + 1 of each row.
        count: G.
        target: (U, 1) leaves.
        log_prob: (U, 1) their log-probabilities.

    Returns:
        What was drawn, and (U,) bool, whether the target would have been among the first `count`.
    """
    leaves, log_probs, keys = _columns(draws, count + 1)
    is_target = leaves == target
    others = is_target.byte().argsort(dim=1, stable=True)
    leaves, log_probs, keys = (each.gather(1, others) for each in (leaves, log_probs, keys))
    weights = importance_weights(log_probs[:, : count - 1], keys[:, count - 1])
    parts = ((leaves, target), (log_probs, log_prob))
    drawn = (torch.cat([of_others[:, : count - 1], own], dim=1) for of_others, own in parts)
    return RollOutSample(*drawn, torch.cat([weights, log_prob.exp()], dim=1)), is_target[:, :count].any(dim=1)


def _columns(draws: Draws, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves, log-probabilities and keys with `width` columns, unfilled where the catalogue has no more SIDs."""
    missing = (0, width - draws.leaves.shape[1])
    return (
        pad(draws.leaves, missing, value=-1),
        pad(draws.scores.double(), missing, value=-torch.inf),
        pad(draws.keys.double(), missing, value=-torch.inf),
    )
