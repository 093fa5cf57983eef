"""One protocol for every ranker: full catalogue, every held-out example, with and without the items already seen.

In the column `plain` the ranker may return any item. In `seen_excluded` the items of the history are masked at request
time, as a shop would do. A target that is in the history cannot be hit then: it counts as a miss, and the share of such
targets is reported.

Examples are batched by history length, longest first: padding stays short, and a batch that does not fit into memory
fails at once. A ranker receives the batches as a stream, so a ranker on a GPU can start a batch before its previous
answer is read. Under `accelerate launch` the batches are dealt to the processes and the answers are gathered. The
batches are the same as in a single process, and so are the answers.

Shapes: n examples, R slots of a ranking, k the largest cut-off.
"""

from __future__ import annotations

import functools
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import Position, target_position
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime import disk, processes
from llmrec.runtime.console import progress, say

COLUMNS = ("plain", "seen_excluded")
Batch = tuple[list[np.ndarray], list[np.ndarray] | None]  # histories and items to exclude, as item rows per example
Rank = Callable[[Iterable[Batch], int], Iterator[Ranking]]  # batches, k -> a ranking of each batch, in their order


@dataclass(frozen=True)
class Outcome:
    """Answers of one system in one column.

    Attributes:
        position: The places of the targets, (n,) each.
        items: (n, k) item rows in the first k slots.
        invalid: (n,) number of answers that are no item.
        seconds: Wall time of ranking all examples.
    """

    position: Position
    items: np.ndarray
    invalid: np.ndarray
    seconds: float

    def save(self, path: Path) -> None:
        """Write an .npz file; it appears only when it is complete."""
        arrays = {"items": self.items, "invalid": self.invalid, "seconds": self.seconds}
        save_arrays(path, {**arrays, **self.position._asdict()})

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read a file that `save` wrote."""
        with np.load(path) as saved:
            position = Position(*(saved[name] for name in Position._fields))
            return cls(position, saved["items"], saved["invalid"], float(saved["seconds"]))


class Part(Protocol):
    """Answers that are kept on disk, such as an Outcome."""

    @property
    def seconds(self) -> float:
        """Wall time of ranking."""

    def save(self, path: Path) -> None:
        """Write a file; it appears only when it is complete."""


SomePart = TypeVar("SomePart", bound=Part)


def resumed(
    path: Path, load: Callable[[Path], SomePart], rank: Callable[[], SomePart], num_examples: int, description: str
) -> SomePart:
    """Read a part that an earlier attempt finished; without one rank, say how fast, and keep the part.

    Args:
        path: File of the part.
        load: Reads the file.
        rank: Makes the part; every process calls it.
        num_examples: Number of examples that are ranked.
        description: Stage and system, for the message.
    """
    if path.is_file():
        try:
            return load(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            say(f"{path} is damaged ({error}) and made again.")
    part = rank()
    speed = num_examples / max(part.seconds, 1e-9)
    say(f"{description}: {num_examples} examples in {part.seconds:.1f} s, {speed:,.1f} examples/s")
    if processes.is_main():
        part.save(path)
    return part


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:  # Any: the types of savez take `**` for its flags
    """Write an .npz file, which appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def per_batch(rank: Callable[[list[np.ndarray], int, list[np.ndarray] | None], Ranking]) -> Rank:
    """Make a ranker from a function that ranks one batch, given its histories, k and the items to exclude (or None)."""
    return lambda batches, k: (rank(histories, k, exclude) for histories, exclude in batches)


def seen_targets(examples: Examples) -> np.ndarray:
    """(n,) bool, True if the target is in the history, which is a certain miss in the column `seen_excluded`."""
    return np.array([examples.targets[i] in examples.history(i) for i in range(len(examples))], dtype=bool)


def evaluate(
    rank: Rank, examples: Examples, k: int, column: str, batch_size: int, description: str = "evaluate"
) -> Outcome:
    """Rank the catalogue for every example and find the targets.

    Args:
        rank: Ranker, called once with k and the batches of this process; `SidRanker.rank_batches`, or
            `per_batch(Popularity.rank)`.
        examples: Held-out examples.
        k: Largest cut-off.
        column: plain or seen_excluded.
        batch_size: Number of examples of a batch.
        description: Label of the progress bar.

    Returns:
        The outcome in the order of `examples`, the same in every process of an `accelerate launch`.

    Raises:
        ValueError: If `column` is unknown, or the ranker answers with too few or too many batches or rankings, or with
            an excluded item.
    """
    started = time.monotonic()
    values = answers(rank, examples, k, column, batch_size, functools.partial(_places, k=k), description)
    position = Position(*(values[name] for name in Position._fields))
    return Outcome(position, values["items"], values["invalid"], time.monotonic() - started)


def answers(
    rank: Rank,
    examples: Examples,
    k: int,
    column: str,
    batch_size: int,
    keep: Callable[[Ranking, np.ndarray], dict[str, np.ndarray]],
    description: str = "evaluate",
) -> dict[str, np.ndarray]:
    """Rank the catalogue for every example and keep a part of each answer; arguments and errors as in `evaluate`.

    Args:
        rank: Ranker.
        examples: Held-out examples.
        k: Number of items that the ranker is asked for.
        column: plain or seen_excluded.
        batch_size: Number of examples of a batch.
        keep: Function of a ranking of B examples and their (B,) targets that returns arrays (B, …) by name.
        description: Label of the progress bar.

    Returns:
        The arrays of all examples by name, in the order of `examples`, the same in every process.
    """
    if column not in COLUMNS:
        raise ValueError(f"Unknown column '{column}'; choose from {', '.join(COLUMNS)}.")
    longest_first = np.argsort(-np.diff(examples.offsets), kind="stable")
    batches = [longest_first[first : first + batch_size] for first in range(0, len(examples), batch_size)]
    mine = dealt(batches, processes.rank(), processes.count())
    parts = []
    for batch, ranking in _ranked(rank, examples, mine, k, column == "seen_excluded", description):
        parts.append({"example": batch, **keep(ranking, examples.targets[batch])})
    gathered = processes.gather(parts)
    order = np.argsort(np.concatenate([part["example"] for part in gathered]))
    return {name: np.concatenate([part[name] for part in gathered])[order] for name in gathered[0]}


def dealt(batches: list[np.ndarray], rank: int, count: int) -> list[np.ndarray]:
    """The batches of process `rank` of `count`.

    They are dealt back and forth (0 1 2, 2 1 0, …). If they were dealt in circles, the first process would always get
    the longer histories.
    """
    return [batch for i, batch in enumerate(batches) if rank in (i % (2 * count), 2 * count - 1 - i % (2 * count))]


def _ranked(
    rank: Rank, examples: Examples, batches: list[np.ndarray], k: int, exclude_seen: bool, description: str
) -> Iterator[tuple[np.ndarray, Ranking]]:
    """Yield each batch with its ranking while the ranker works on the next one."""
    histories = ([examples.history(i) for i in batch] for batch in batches)
    rankings = rank(((batch, batch if exclude_seen else None) for batch in histories), k)
    pairs = progress(
        zip_longest(batches, rankings),
        description,
        total=sum(map(len, batches)),
        unit="examples" if processes.count() == 1 else f"examples, 1 of {processes.count()} processes",
        size=lambda pair: len(pair[0]),
    )
    for batch, ranking in pairs:
        if batch is None or ranking is None:
            number = "more" if batch is None else "fewer"
            raise ValueError(f"The ranker answered {number} batches than the {len(batches)} that it was given.")
        if len(ranking) != len(batch):
            raise ValueError(f"The ranker answered {len(ranking)} histories of a batch of {len(batch)}.")
        if exclude_seen:
            _check_excluded(ranking, [examples.history(i) for i in batch])
        yield batch, ranking


def _places(ranking: Ranking, targets: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The fields of an `Outcome` for one batch."""
    items = np.full((len(ranking), k), UNFILLED, dtype=np.int64)
    items[:, : ranking.items.shape[1]] = ranking.items[:, :k]
    invalid = ranking.invalid if ranking.invalid is not None else np.zeros(len(ranking), dtype=np.int64)
    return {**target_position(ranking, targets)._asdict(), "items": items, "invalid": invalid}


def _check_excluded(ranking: Ranking, histories: list[np.ndarray]) -> None:
    """Refuse a ranker that ignores `exclude`, whose results would be reported as if it did not."""
    for items, history in zip(ranking.items, histories, strict=True):
        wrong = np.intersect1d(items, history)
        if len(wrong):
            raise ValueError(
                f"The ranker returned the item rows {wrong[:3].tolist()}, which it was asked to exclude; "
                "its `rank` must honour `exclude`."
            )
