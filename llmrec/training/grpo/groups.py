"""Groups: the roll-outs of one prompt with their rewards, advantages and weights, ready for the loss.

Shapes: U groups, G roll-outs of a group, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.configs import GrpoConfig
from llmrec.decoding.ranker import PADDING, SidRanker
from llmrec.decoding.sampling import Generators
from llmrec.evaluation.ranking import ScoresNotFinite
from llmrec.training.callbacks import DIVERGED
from llmrec.training.grpo.advantages import distinct_advantages, group_advantages, is_idle
from llmrec.training.grpo.rewards import RollOuts, WeightedRewards
from llmrec.training.grpo.rollouts import RollOutSample, roll_out

PROMPTS_AT_ONCE = 256  # prompts that are rolled out together


@dataclass(frozen=True)
class Group:
    """The roll-outs of one prompt.

    Attributes:
        history: Item rows that the prompt shows.
        completions: (G, L) token ids of the SIDs, -1 beyond a SID's length.
        rewards: (G,) values of each reward by its name.
        reward: (G,) weighted sum of the rewards.
        advantages: (G,).
        weights: (G,) factor of each roll-out in the loss; 1 where all count alike.
        is_idle: Whether all roll-outs have the same reward, so that there is nothing to learn.
        is_hit: Whether the policy drew the target by itself.
        num_distinct: Number of different SIDs among the completions.
    """

    history: np.ndarray
    completions: np.ndarray
    rewards: dict[str, np.ndarray]
    reward: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    is_idle: bool
    is_hit: bool
    num_distinct: int

    @property
    def expected_reward(self) -> float:
        """The group's estimate of the policy's expected reward; the mean for beams and injected targets."""
        return float((self.weights * self.reward).mean())


class GroupSampler:
    """Draws groups for training examples.

    Args:
        ranker: The model that trains, with its trie, encoder and prefix; `sibling_scores_in_forward` is open on it.
        sequences: Item rows of each example: a history, then its target.
        rewards: Rewards of the roll-outs.
        config: Options of the stage.
    """

    def __init__(
        self, ranker: SidRanker, sequences: Sequence[np.ndarray], rewards: WeightedRewards, config: GrpoConfig
    ):
        self.ranker, self.sequences, self.rewards, self.config = ranker, sequences, rewards, config
        self.trie, self.vocabulary = ranker.trie, ranker.sid_config.vocabulary

    @torch.no_grad()
    def draw(self, examples: Sequence[int], generator: Generators) -> list[Group]:
        """Roll out and reward the prompts of some examples.

        Args:
            examples: Positions among `sequences`.
            generator: Source of randomness, on the device of the model; see `tree_sample`.

        Raises:
            ValueError: If the model gives no probabilities any more.
        """
        groups: list[Group] = []
        for first in range(0, len(examples), PROMPTS_AT_ONCE):
            part = slice(first, first + PROMPTS_AT_ONCE)
            own = generator[part] if isinstance(generator, Sequence) else generator
            groups += self._draw([self.sequences[i] for i in examples[part]], own)
        return groups

    def _draw(self, sequences: Sequence[np.ndarray], generator: Generators) -> list[Group]:
        histories = [sequence[:-1][-self.ranker.sid_config.max_history :] for sequence in sequences]
        targets = np.array([sequence[-1] for sequence in sequences])
        wanted = self.leaves_of(targets).unsqueeze(1) if self.config.inject_target else None
        count, way = self.config.num_generations, self.config.rollouts
        try:
            sample = roll_out(self.ranker, histories, wanted, count, way, generator)
        except ScoresNotFinite as error:
            raise ValueError(f"No items can be drawn: {DIVERGED}") from error
        assert bool((sample.leaves >= 0).all()), "a roll-out is no item"
        rollouts = self.describe(histories, targets, sample)
        reward, rewards = self.rewards(rollouts)
        advantages, weights = self._advantages(torch.from_numpy(reward), sample)
        idle = is_idle(torch.from_numpy(reward)).tolist()
        is_hit = rollouts.hits.any(axis=1) & ~sample.is_injected.cpu().numpy()
        completions = self.vocabulary.token_ids(rollouts.codes)
        leaves = sample.leaves.cpu().numpy()
        return [
            Group(
                history=history,
                completions=completions[u],
                rewards={name: values[u] for name, values in rewards.items()},
                reward=reward[u],
                advantages=advantages[u].numpy(),
                weights=weights[u].numpy(),
                is_idle=idle[u],
                is_hit=bool(is_hit[u]),
                num_distinct=len(np.unique(leaves[u])),
            )
            for u, history in enumerate(histories)
        ]

    def describe(self, histories: Sequence[np.ndarray], targets: np.ndarray, sample: RollOutSample) -> RollOuts:
        """Describe roll-outs by items and codes, as rewards see them."""
        leaves, owners = sample.leaves.cpu().numpy(), self.trie.owners
        place, of_target = owners.entries(targets)
        pairs = np.arange(len(targets))[:, None] * self.trie.num_leaves + leaves
        hits = np.isin(pairs, place * self.trie.num_leaves + of_target)
        first = owners.rows[leaves if owners.starts is None else owners.starts[leaves]]
        return RollOuts(
            histories,
            targets,
            self._codes(self.leaves_of(targets)),
            np.where(hits, targets[:, None], first),
            self._codes(sample.leaves),
            sample.log_probs.cpu().numpy(),
        )

    def batch(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Lay groups out as tensors for a forward pass and its loss.

        Returns:
            input_ids and attention_mask (U, T) of the prompts, completions (U, G, L), advantages and weights (U, G).
        """
        prefix, histories = self.ranker.prefix_ids.tolist(), [group.history for group in groups]
        ids, mask = self.ranker.encoder.pad_prompts(prefix, histories, PADDING)
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "completions": np.stack([group.completions for group in groups]),
            "advantages": np.stack([group.advantages for group in groups]).astype(np.float32),
            "weights": np.stack([group.weights for group in groups]).astype(np.float32),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def leaves_of(self, targets: np.ndarray) -> Tensor:
        """(U,) leaf of each target; for a target with several SIDs, the first in the order of the trie."""
        place, leaves = self.trie.owners.entries(targets)
        return torch.from_numpy(leaves[np.unique(place, return_index=True)[1]].astype(np.int64)).to(self.trie.device)

    def _codes(self, leaves: Tensor) -> np.ndarray:
        return self.trie.codes_of(leaves).cpu().numpy()

    def _advantages(self, reward_UG: Tensor, sample: RollOutSample) -> tuple[Tensor, Tensor]:
        """(U, G) advantages, and the (U, G) factors of the roll-outs in the loss."""
        divide = self.config.loss != "dr_grpo"
        if sample.weights is None:
            return group_advantages(reward_UG, divide), torch.ones_like(reward_UG)
        log_probs, weights = sample.log_probs.cpu(), sample.weights.cpu()
        return distinct_advantages(reward_UG, log_probs, weights, divide), weights * reward_UG.shape[1]
