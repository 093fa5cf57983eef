"""Steps of `prepare`: how many users, items and interactions each filter leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import polars as pl

from llmrec.data.columns import ITEM_ID, USER_ID
from llmrec.runtime.manifest import JsonObject

ROUND = ", round "


@dataclass(frozen=True)
class Step:
    """Users, items and interactions that a filter has left.

    Attributes:
        name: What was done, in words.
        users: Users with an interaction.
        items: Items with an interaction.
        interactions: Rows.
    """

    name: str
    users: int
    items: int
    interactions: int


def summary(steps: list[JsonObject]) -> list[list[str]]:
    """Cells of a table of the steps, all rounds of the k-core in one line.

    >>> names = ("read", "2-core, round 1", "2-core, round 2")
    >>> steps = [{"name": name, "users": 3, "items": 2, "interactions": 9} for name in names]
    >>> summary(steps)
    [['read', '3', '2', '9'], ['2-core', '3', '2', '9']]
    """
    last = {step["name"].partition(ROUND)[0]: step for step in steps}
    return [[name, *(f"{step[key]:,}" for key in ("users", "items", "interactions"))] for name, step in last.items()]


def whole(steps: list[JsonObject]) -> JsonObject:
    """The step with the most interactions: all that was read, with those of a catalogue that it was appended to."""
    return max(steps, key=lambda step: step["interactions"])


@dataclass
class Steps:
    """Record of the filters that a log passes, in their order."""

    done: list[Step] = field(default_factory=list)

    def note(self, name: str, log: pl.DataFrame) -> pl.DataFrame:
        """Count a log under the name of what was just done to it, and hand it back; rows of a user are neighbours."""
        counts = (pl.col(USER_ID).rle_id().max() + 1, pl.col(ITEM_ID).n_unique())
        users, items = log.select(counts).row(0) if log.height else (0, 0)
        self.done.append(Step(name, users, items, log.height))
        return log

    def note_numbers(self, name: str, users: np.ndarray, items: np.ndarray) -> None:
        """Count the interactions whose users and items have these numbers, which is faster."""
        num_users, num_items = (int(np.count_nonzero(np.bincount(each))) for each in (users, items))
        self.done.append(Step(name, num_users, num_items, len(users)))

    def facts(self) -> list[JsonObject]:
        """The steps as JSON."""
        return [asdict(step) for step in self.done]
