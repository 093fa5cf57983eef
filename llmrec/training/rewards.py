"""Rewards of roll-outs: what each recommended item is worth, before groups are compared (`llmrec.training.advantages`).

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

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.catalog import Catalog
from llmrec.evaluation.neural import NeuralRanker, SASRec
from llmrec.sid import EMPTY, SidTable
from llmrec.suggest import suggestion


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
# A user's reward: history, item_ids of a group in the order drawn, target -> a number for each of the item_ids.
UserReward = Callable[[list[str], list[str], str], Sequence[float]]


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


class ById:
    """A user's function as a reward.

    Args:
        function: See `UserReward`.
        item_ids: External id of each item row.
    """

    def __init__(self, function: UserReward, item_ids: Sequence[str]):
        self.function, self.name, self.item_ids = function, name_of(function), np.array(item_ids, dtype=object)

    def __call__(self, groups: Groups) -> np.ndarray:
        given = zip(groups.histories, groups.items, groups.targets, strict=True)
        return np.array([self._of_group(*(self.item_ids[rows] for rows in group)) for group in given])

    def _of_group(self, history: np.ndarray, items: np.ndarray, target: str) -> np.ndarray:
        try:
            values = np.asarray(self.function(history.tolist(), items.tolist(), target), dtype=np.float64)
        except Exception as error:
            raise ValueError(
                f"The reward '{self.name}' failed on the history {history.tolist()} with target '{target}': "
                f"{type(error).__name__}: {error}"
            ) from error
        if values.shape != items.shape:
            raise ValueError(
                f"The reward '{self.name}' returned {_described(values)} for a group of {len(items)} items; return one "
                "number for each of them, in their order."
            )
        return values


def _described(values: np.ndarray) -> str:
    return f"{len(values)} numbers" if values.ndim == 1 else f"an array of shape {values.shape}"


class WeightedRewards:
    """The weighted sum of rewards.

    Args:
        rewards: By name.
        weights: As many.
    """

    def __init__(self, rewards: dict[str, Reward], weights: Sequence[float]):
        self.rewards, self.weights = rewards, list(weights)

    def __call__(self, groups: Groups) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards of groups.

        Returns:
            (U, G) weighted sums, and (U, G) of each reward by its name.

        Raises:
            ValueError: If a reward is not a finite number for each roll-out.
        """
        found = {name: np.asarray(reward(groups), dtype=np.float64) for name, reward in self.rewards.items()}
        for name, values in found.items():
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                group, place = bad[0]
                raise ValueError(
                    f"The reward '{name}' is {values[group, place]} for item row {groups.items[group, place]} after "
                    f"the history {groups.histories[group].tolist()}; rewards are finite numbers."
                )
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
    names: Sequence[str | UserReward],
    weights: Sequence[float] | None,
    catalog: Catalog,
    seed: int = 0,
    device: str = "auto",
) -> WeightedRewards:
    """Rewards by name; SASRec is trained here if it is asked for.

    Args:
        names: Of REWARDS, or functions of the user's own.
        weights: Of each; 1 when left out.
        catalog: Whose training split SASRec and novelty know. Valid rows choose SASRec's epoch.
        seed: Of SASRec.
        device: Of SASRec.

    Raises:
        ValueError: If two functions have one name.
    """
    rewards: dict[str, Reward] = {}
    for each in names:
        name = name_of(each)
        if name in rewards:
            raise ValueError(f"Two rewards are called '{name}'; give one of them another name.")
        rewards[name] = REWARDS[each](catalog, seed, device) if isinstance(each, str) else ById(each, catalog.item_ids)
    return WeightedRewards(rewards, weights or [1.0] * len(rewards))


def name_of(reward: str | UserReward) -> str:
    """What a reward is called in the log."""
    return reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)


def resolved(names: Sequence[str]) -> list[str | UserReward]:
    """Names of REWARDS as they are, references to functions loaded."""
    return [name if name in REWARDS else load_function(name) for name in names]


def source_of(function: UserReward) -> str | None:
    """File that holds a user's function, where it lies in one."""
    return inspect.getsourcefile(function if inspect.isroutine(function) else type(function))


def check_functions(
    functions: Sequence[UserReward], table: SidTable, sequences: Sequence[np.ndarray], count: int
) -> None:
    """Try functions on groups that hold the target and other items, before anything is trained.

    Args:
        functions: Of the user.
        table: Semantic IDs.
        sequences: Item rows of histories, each with its target behind it.
        count: G.

    Raises:
        ValueError: If one fails, or does not give a finite number for each item.
    """
    targets = np.array([sequence[-1] for sequence in sequences])
    items = (targets[:, None] + np.arange(count)) % table.num_items
    scores = np.tile(-np.arange(1.0, count + 1), (len(items), 1))
    groups = Groups(
        [sequence[:-1] for sequence in sequences], targets, table.codes(targets), items, table.codes(items), scores
    )
    WeightedRewards({name_of(each): ById(each, table.item_ids) for each in functions}, [1.0] * len(functions))(groups)


def load_function(reference: str) -> UserReward:
    """The function that a reference names, by running the module or file that holds it.

    Args:
        reference: `module:function` or `path/to/file.py:function`.

    Raises:
        ValueError: If there is no such module, file or function, or it cannot be imported.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(
            f"Unknown reward '{reference}'; {suggestion(reference, REWARDS)} A function of your own is named "
            "module:function or path/to/file.py:function."
        )
    try:
        module = _run_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise ValueError(f"The reward '{reference}' cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"The reward '{reference}' names no function: '{where}' has no callable '{name}'.")
    return function


def _run_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"llmrec_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
