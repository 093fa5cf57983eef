"""Rewards of the user's own: functions of external ids, from a file, a module or a Python caller.

A reference such as `my_rewards.py:margin` runs that file. It is named on the command line or in the config of a run,
by whoever starts it; nothing is ever loaded from an artefact.
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

from llmrec.configs import REWARD_NAMES
from llmrec.configs.options import suggestion
from llmrec.sid.table import SidTable
from llmrec.training.grpo.rewards import Groups

# history, item_ids of a group in the order drawn, target -> a number for each of the item_ids.
OwnReward = Callable[[list[str], list[str], str], Sequence[float]]


class UserReward:
    """A user's function as a reward; calls raise a ValueError if it does not give a finite number for each item.

    Args:
        function: See `OwnReward`.
        name: As errors call it.
        item_ids: External id of each item row.
    """

    def __init__(self, function: OwnReward, name: str, item_ids: Sequence[str]):
        self.function, self.name, self.item_ids = function, name, np.array(item_ids, dtype=object)

    def __call__(self, groups: Groups) -> np.ndarray:
        given = zip(groups.histories, groups.items, groups.targets, strict=True)
        return np.array([self._of_group(*(self.item_ids[rows] for rows in group)) for group in given])

    def _of_group(self, history: np.ndarray, items: np.ndarray, target: str) -> np.ndarray:
        asked = f"the history {history.tolist()} with target '{target}'"
        try:
            found = self.function(history.tolist(), items.tolist(), target)
            values = np.asarray(found, dtype=np.float64)
        except Exception as error:
            raise ValueError(f"The reward '{self.name}' failed on {asked}: {type(error).__name__}: {error}") from error
        if values.shape != items.shape:
            raise ValueError(
                f"The reward '{self.name}' returned {_described(found, values)} for a group of {len(items)} items; "
                "return one number for each of them, in their order."
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"The reward '{self.name}' is {values[bad[0]]} for the item '{items[bad[0]]}' after {asked}; return "
                "finite numbers."
            )
        return values


def _described(found: object, values: np.ndarray) -> str:
    """What was returned, and the array that was made of it."""
    if values.ndim == 0:
        return repr(found)
    return f"{len(values)} numbers" if values.ndim == 1 else f"an array of shape {values.shape}"


def own_rewards(names: Sequence[str], functions: Sequence[OwnReward], item_ids: Sequence[str]) -> dict[str, UserReward]:
    """The rewards of a run that are the user's.

    Args:
        names: Of all rewards of the config; those that are references are loaded.
        functions: Beside them, each under its own name.
        item_ids: External id of each item row.

    Raises:
        ValueError: If a function cannot be loaded, or has the name of another reward.
    """
    own = {name: UserReward(load_function(name), name, item_ids) for name in names if name not in REWARD_NAMES}
    for function in functions:
        name = getattr(function, "__name__", type(function).__name__)
        if name in own or name in REWARD_NAMES:
            raise ValueError(f"Two rewards are called '{name}'; rename one.")
        own[name] = UserReward(function, name, item_ids)
    return own


def sources(own: Mapping[str, UserReward]) -> dict[str, str]:
    """What a run depends on for its own rewards: the files that hold them, or their names where they lie in none."""
    return {f"reward {name}": _file_of(reward.function) or name for name, reward in own.items()}


def _file_of(function: OwnReward) -> str | None:
    """The file that holds a function or the class of a callable; None of what is built in or typed into a notebook."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
    except TypeError:
        return None
    return file if file and Path(file).is_file() else None


def check_own(own: Mapping[str, UserReward], table: SidTable, sequences: Sequence[np.ndarray], count: int) -> None:
    """Try rewards on groups that hold the target and other items, before anything is trained.

    Args:
        own: Of the user, by name.
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
    for reward in own.values():
        reward(groups)


def load_function(reference: str) -> OwnReward:
    """The function that a reference names, by running the module or file that holds it.

    Args:
        reference: `module:function` or `path/to/file.py:function`.

    Raises:
        ValueError: If there is no such module, file or function, or it cannot be imported.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(
            f"Unknown reward '{reference}'; {suggestion(reference, REWARD_NAMES)} (your own is named "
            "module:function or path/to/file.py:function)."
        )
    try:
        module = _run_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise ValueError(f"The reward '{reference}' cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"The reward '{reference}' leads nowhere: '{where}' has no callable '{name}'.")
    return function


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(str(path.resolve()), path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
