"""Rewards of roll-outs: the worth of each recommended item, before the roll-outs of a group are compared.

    rule           1 for the target, 0 for any other item
    rank           a miss costs more, the higher the policy ranks it; 0 in groups without the target
    prefix         share of the target's codes that the SID shares from the first level on
    collaborative  how high a SASRec trained on the training split ranks the item
    novelty        how rare the item is in the training split

`rule` and `rank` with equal weights are the reward of MiniOneRec (arXiv:2510.24431, its released code); ReRe uses the
same `rank`. `collaborative` and `novelty` ignore the target, so a policy can raise them while it finds fewer targets
(reward hacking, which MiniOneRec saw with SASRec): give them small weights and watch the validation NDCG.

A SID may belong to several items and an item may have several SIDs; drawing any SID of the target is a hit.

Departure: MiniOneRec's groups are beams, ranked in the order of the search. Here roll-outs of any kind are ranked by
their log-probability.

To add a reward, write a function of `RollOuts` and add it to `REWARDS`.

Shapes: U groups, G roll-outs of a group, L levels, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.baselines import NeuralRanker, SASRec
from llmrec.data.catalog import Catalog
from llmrec.sid.table import EMPTY


@dataclass(frozen=True)
class RollOuts:
    """The roll-outs of U histories, as rewards see them.

    Attributes:
        histories: U arrays of item rows, oldest first.
        targets: (U,) item row that followed each history.
        target_codes: (U, L) SID of each target, -1 beyond its length.
        items: (U, G) item row of each roll-out; the target where the drawn SID is one of its SIDs.
        codes: (U, G, L) SID of each roll-out.
        scores: (U, G) log-probability of each roll-out under the policy.
    """

    histories: Sequence[np.ndarray]
    targets: np.ndarray
    target_codes: np.ndarray
    items: np.ndarray
    codes: np.ndarray
    scores: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """(U, G) bool, which roll-outs are the target."""
        return self.items == self.targets[:, None]


Reward = Callable[[RollOuts], np.ndarray]  # returns (U, G) float


def rule(rollouts: RollOuts) -> np.ndarray:
    """1 for the target, 0 for any other item."""
    return rollouts.hits.astype(np.float64)


def rank(rollouts: RollOuts) -> np.ndarray:
    """-(1 / log2(i + 2)) / sum_j 1 / log2(j + 2) for the miss at rank i of a group with a hit; 0 otherwise."""
    places = np.argsort(np.argsort(-rollouts.scores, axis=1, kind="stable"), axis=1)
    discount = 1 / np.log2(np.arange(places.shape[1]) + 2)
    costs = discount[places] / discount.sum()
    counts = ~rollouts.hits & rollouts.hits.any(axis=1, keepdims=True)
    return np.where(counts, -costs, 0.0)


def prefix(rollouts: RollOuts) -> np.ndarray:
    """Share of the target's codes that a SID shares from the first level on; 1 for a hit."""
    is_code = rollouts.target_codes != EMPTY  # (U, L)
    shared = ((rollouts.codes == rollouts.target_codes[:, None]) & is_code[:, None]).cumprod(axis=2).sum(axis=2)
    return np.where(rollouts.hits, 1.0, shared / is_code.sum(axis=1, keepdims=True))


class Collaborative:
    """1 / log2(1 + place), where place counts from 1 in SASRec's ranking of all items: the item's gain in an NDCG.

    The place is used instead of the score so that the reward has the scale of `rule`, whatever SASRec's logits are.

    Args:
        ranker: SASRec, trained on the training split.
    """

    def __init__(self, ranker: NeuralRanker):
        self.ranker = ranker

    def __call__(self, rollouts: RollOuts) -> np.ndarray:
        scores = self.ranker.scores(rollouts.histories)  # (U, N)
        items = scores.new_tensor(rollouts.items).long()
        places = [
            1 + (of_all > of_all[mine].unsqueeze(1)).sum(dim=1) for of_all, mine in zip(scores, items, strict=True)
        ]
        return 1 / np.log2(1 + np.stack([place.cpu().numpy() for place in places]))


class Novelty:
    """Rarity of an item, from the logarithm of its training interactions plus one: 0 for the most popular, 1 for new.

    Args:
        counts: (N,) training interactions of each item.
    """

    def __init__(self, counts: np.ndarray):
        most = np.log1p(max(1, counts.max()))
        self.novelty = (most - np.log1p(counts)) / most

    def __call__(self, rollouts: RollOuts) -> np.ndarray:
        return self.novelty[rollouts.items]


# The rewards that a config can name; each is built from a catalogue, a seed and a device.
REWARDS: dict[str, Callable[[Catalog, int, str], Reward]] = {
    "rule": lambda *_: rule,
    "rank": lambda *_: rank,
    "prefix": lambda *_: prefix,
    "collaborative": lambda catalog, seed, device: Collaborative(NeuralRanker(SASRec, catalog, seed, device)),
    "novelty": lambda catalog, *_: Novelty(catalog.training_counts),
}


class WeightedRewards:
    """The weighted sum of several rewards.

    Args:
        rewards: Rewards by their names.
        weights: One weight for each of them.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Sequence[float]):
        self.rewards, self.weights = rewards, list(weights)

    def __call__(self, rollouts: RollOuts) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reward roll-outs.

        Returns:
            (U, G) weighted sums, and the (U, G) values of each reward by its name.

        Raises:
            ValueError: If a reward, or the weighted sum, is not finite.
        """
        values = {name: np.asarray(reward(rollouts), dtype=np.float64) for name, reward in self.rewards.items()}
        weighted = [weight * value for weight, value in zip(self.weights, values.values(), strict=True)]
        total = np.sum(weighted, axis=0)
        for name, value in (*values.items(), ("weighted sum", total)):
            bad = value[~np.isfinite(value)]
            if len(bad):
                raise ValueError(f"The reward '{name}' is {bad[0]} for a roll-out; rewards have to be finite numbers.")
        return total, values


def build_rewards(
    names: Sequence[str],
    weights: Sequence[float],
    catalog: Catalog,
    user_rewards: Mapping[str, Reward] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> WeightedRewards:
    """Build the rewards of a run; `collaborative` trains SASRec here.

    Args:
        names: Keys of `REWARDS` or of `user_rewards`.
        weights: Weight of each.
        catalog: Catalogue whose training split `collaborative` and `novelty` use; its validation split chooses
            SASRec's epoch.
        user_rewards: The user's own rewards by name, see `llmrec.training.grpo.user_rewards`.
        seed: Seed of SASRec.
        device: Device of SASRec.
    """
    user_rewards = user_rewards or {}
    rewards = {name: user_rewards[name] if name in user_rewards else REWARDS[name](catalog, seed, device)
               for name in names}  # fmt: skip
    return WeightedRewards(rewards, weights)
