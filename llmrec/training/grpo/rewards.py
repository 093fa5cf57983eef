"""Rewards of roll-outs: what each recommended item is worth, before groups are compared.

    rule           1 for the target, 0 for anything else
    rank           a miss costs the more, the higher the policy ranks it; nothing where the target was not drawn
    prefix         share of the target's codes that an item shares from the first level on
    collaborative  how high a SASRec that knows the training split ranks the item
    novelty        how rare the item is in training

`rule` and `rank` with equal weights are MiniOneRec's reward (arXiv:2510.24431, its released code), `rank` that of ReRe
likewise. `collaborative` and `novelty` look at no target: a policy can raise them while it finds fewer targets (reward
hacking, which MiniOneRec saw with SASRec), so weigh them low and watch the validation NDCG.

An item that several SIDs or a SID that several items own counts as its best case: drawing any SID of the target is a
hit.

Departure: MiniOneRec's groups are beams, ranked as they come; here any roll-outs are ranked by their log-probability.

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
class Groups:
    """Roll-outs of U histories.

    Attributes:
        histories: U arrays of item rows, oldest first.
        targets: (U,) item row that followed.
        target_codes: (U, L) its SID, -1 beyond its length.
        items: (U, G) item row of each roll-out; the target where the drawn SID is one of its own.
        codes: (U, G, L) SID of each.
        scores: (U, G) its log-probability under the policy.
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


# A reward by rows: (U, G) float of groups.
Reward = Callable[[Groups], np.ndarray]


def rule(groups: Groups) -> np.ndarray:
    return groups.hits.astype(np.float64)


def rank(groups: Groups) -> np.ndarray:
    """-(1 / log2(i + 2)) / sum_j 1 / log2(j + 2) for the miss at rank i of a group with a hit; 0 otherwise."""
    places = np.argsort(np.argsort(-groups.scores, axis=1, kind="stable"), axis=1)
    discount = 1 / np.log2(np.arange(places.shape[1]) + 2)
    costs = discount[places] / discount.sum()
    counts = ~groups.hits & groups.hits.any(axis=1, keepdims=True)
    return np.where(counts, -costs, 0.0)


def prefix(groups: Groups) -> np.ndarray:
    is_code = groups.target_codes != EMPTY  # (U, L)
    shared = ((groups.codes == groups.target_codes[:, None]) & is_code[:, None]).cumprod(axis=2).sum(axis=2)
    return np.where(groups.hits, 1.0, shared / is_code.sum(axis=1, keepdims=True))


class Collaborative:
    """1 / log2(1 + place) by the item's place, from 1, in the SASRec ranking of all items: its gain in an NDCG.

    A place and not a score, so that the reward has the scale of `rule` whatever SASRec's logits are.

    Args:
        ranker: SASRec, trained on the training split.
    """

    def __init__(self, ranker: NeuralRanker):
        self.ranker = ranker

    def __call__(self, groups: Groups) -> np.ndarray:
        scores = self.ranker.scores(groups.histories)  # (U, N)
        rows = scores.new_tensor(groups.items).long()
        places = [
            1 + (of_all > of_all[mine].unsqueeze(1)).sum(dim=1) for of_all, mine in zip(scores, rows, strict=True)
        ]
        return 1 / np.log2(1 + np.stack([place.cpu().numpy() for place in places]))


class Novelty:
    """Surprise at an item whose training interactions are counted plus one: 0 for the most popular, 1 for one unseen.

    Args:
        counts: (N,) training interactions of each item.
    """

    def __init__(self, counts: np.ndarray):
        most = np.log1p(max(1, counts.max()))
        self.novelty = (most - np.log1p(counts)) / most

    def __call__(self, groups: Groups) -> np.ndarray:
        return self.novelty[groups.items]


class WeightedRewards:
    """The weighted sum of rewards.

    Args:
        rewards: By name.
        weights: As many.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Sequence[float]):
        self.rewards, self.weights = rewards, list(weights)

    def __call__(self, groups: Groups) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards of groups.

        Returns:
            (U, G) weighted sums, and (U, G) of each reward by its name.
        """
        found = {name: np.asarray(reward(groups), dtype=np.float64) for name, reward in self.rewards.items()}
        return sum(weight * values for weight, values in zip(self.weights, found.values(), strict=True)), found


# Of a catalogue, a seed and a device; these names are written in configs.
REWARDS: dict[str, Callable[[Catalog, int, str], Reward]] = {
    "rule": lambda *_: rule,
    "rank": lambda *_: rank,
    "prefix": lambda *_: prefix,
    "collaborative": lambda catalog, seed, device: Collaborative(NeuralRanker(SASRec, catalog, seed, device)),
    "novelty": lambda catalog, *_: Novelty(catalog.training_counts),
}


def build_rewards(
    names: Sequence[str],
    weights: Sequence[float],
    catalog: Catalog,
    own: Mapping[str, Reward] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> WeightedRewards:
    """Rewards by name; SASRec is trained here if it is asked for.

    Args:
        names: Of REWARDS, or of the user's own.
        weights: Of each.
        catalog: Whose training split SASRec and novelty know. Valid rows choose SASRec's epoch.
        own: The user's own by name (`llmrec.training.grpo.user_rewards`).
        seed: Of SASRec.
        device: Of SASRec.
    """
    own = own or {}
    rewards = {name: own[name] if name in own else REWARDS[name](catalog, seed, device) for name in names}
    return WeightedRewards(rewards, weights)
