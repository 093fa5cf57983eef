"""The user's own rewards: functions of external ids, from a file, a module or a Python caller.

A reference such as `my_rewards.py:margin` runs that file. Only the command line and the config of a run can name one;
nothing is ever loaded from an artefact.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from llmrec.configs.options import suggestion
from llmrec.sid.table import SidTable
from llmrec.training.grpo.rewards import REWARDS, RollOuts

# (history, item_ids of a group in the order drawn, target) -> a number for each of the item_ids.
RewardFunction = Callable[[list[str], list[str], str], Sequence[float]]


class UserReward:
    """A user's function as a reward.

    Args:
        function: The function, see `RewardFunction`.
        name: Name of the reward in error messages.
        item_ids: External id of each item row.
    """

    def __init__(self, function: RewardFunction, name: str, item_ids: Sequence[str]):
        self.function, self.name, self.item_ids = function, name, np.array(item_ids, dtype=object)

    def __call__(self, rollouts: RollOuts) -> np.ndarray:
        """Reward roll-outs.

        Raises:
            ValueError: If the function fails, or does not return a finite number for each item.
        """
        groups = zip(rollouts.histories, rollouts.items, rollouts.targets, strict=True)
        return np.array([self._reward(*(self.item_ids[rows] for rows in group)) for group in groups])

    def _reward(self, history: np.ndarray, items: np.ndarray, target: str) -> np.ndarray:
        asked = f"the history {history.tolist()} with target '{target}'"
        try:
            returned = self.function(history.tolist(), items.tolist(), target)
            values = np.asarray(returned, dtype=np.float64)
        except Exception as error:
            raise ValueError(f"The reward '{self.name}' failed on {asked}: {type(error).__name__}: {error}") from error
        if values.shape != items.shape:
            raise ValueError(
                f"The reward '{self.name}' returned {_described(returned, values)} for a group of {len(items)} items; "
                "return one number for each of them, in their order."
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"The reward '{self.name}' is {values[bad[0]]} for the item '{items[bad[0]]}' after {asked}; return "
                "finite numbers."
            )
        return values


def _described(returned: object, values: np.ndarray) -> str:
    """Describe a return value by the shape of the array that was made of it."""
    if values.ndim == 0:
        return repr(returned)
    return f"{len(values)} numbers" if values.ndim == 1 else f"an array of shape {values.shape}"


def load_user_rewards(
    names: Sequence[str], functions: Sequence[RewardFunction], item_ids: Sequence[str]
) -> dict[str, UserReward]:
    """Load the rewards of a run that are not among `REWARDS`.

    Args:
        names: Names of all rewards of the config; those that are references are loaded.
        functions: Rewards of a Python caller, each under its own name.
        item_ids: External id of each item row.

    Raises:
        ValueError: If a name is unknown, a function cannot be loaded, or two rewards have one name.
    """
    loaded: dict[str, UserReward] = {}
    problems = []
    for name in names:
        if name not in REWARDS:
            try:
                loaded[name] = UserReward(load_function(name), name, item_ids)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError(" ".join(problems))
    for function in functions:
        name = getattr(function, "__name__", type(function).__name__)
        if name in loaded or name in REWARDS:
            raise ValueError(f"Two rewards are called '{name}'; rename one.")
        loaded[name] = UserReward(function, name, item_ids)
    return loaded


def reward_files(rewards: Mapping[str, UserReward]) -> dict[str, str | Path]:
    """Files that hold the user's rewards, as inputs of a run; the name of a reward that is in no file."""
    return {f"reward {name}": _file_of(reward.function) or name for name, reward in rewards.items()}


def _file_of(function: RewardFunction) -> str | None:
    """File that holds a function or the class of a callable; None for built-in functions and those of a notebook."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
    except TypeError:
        return None
    return file if file and Path(file).is_file() else None


def try_rewards(rewards: Mapping[str, UserReward], table: SidTable, sequences: Sequence[np.ndarray], size: int) -> None:
    """Try the user's rewards on groups that hold the target and other items, before anything is trained.

    Args:
        rewards: The user's rewards by name.
        table: Semantic IDs.
        sequences: Item rows of histories, each followed by its target.
        size: Roll-outs of a group.

    Raises:
        ValueError: If a reward fails, or does not return a finite number for each item.
    """
    targets = np.array([sequence[-1] for sequence in sequences])
    items = (targets[:, None] + np.arange(size)) % table.num_items
    scores = np.tile(-np.arange(1.0, size + 1), (len(items), 1))
    rollouts = RollOuts(
        [sequence[:-1] for sequence in sequences], targets, table.codes(targets), items, table.codes(items), scores
    )
    for reward in rewards.values():
        reward(rollouts)


def load_function(reference: str) -> RewardFunction:
    """Load the function that a reference names, by running the module or file that holds it.

    Args:
        reference: `module:function` or `path/to/file.py:function`.

    Raises:
        ValueError: If there is no such module, file or function, or it cannot be imported.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(
            f"unknown reward '{reference}'; {suggestion(reference, REWARDS)} (your own is named module:function or "
            "path/to/file.py:function)."
        )
    try:
        module = _run_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise ValueError(f"The reward '{reference}' cannot be loaded: {type(error).__name__}: {error}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"The reward '{reference}' leads nowhere: '{where}' has no callable '{name}'.")
    return function


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(str(path.resolve()), path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
