"""One protocol for every ranker: full catalogue, every held-out row, with and without the items already seen.

`plain` lets the ranker return anything; `seen_excluded` masks the items of the row's history at request time, as a shop
would. A target that is itself in the history cannot be hit then: it counts as a miss, and its share is reported.

Rows are batched by history length, longest first, so that little is padded and a batch that does not fit fails at once.
A ranker takes them as a stream, so that one on a GPU may start a batch before the answer to the last one is read. Under
`accelerate launch` the batches are dealt to the processes and the answers gathered; the batches are the same ones as in
a single process, so the answers are too.

Shapes: n rows, R slots of a ranking, k the largest cut-off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import Position, target_position
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime import processes
from llmrec.runtime.console import progress

COLUMNS = ("plain", "seen_excluded")
Batch = tuple[list[np.ndarray], list[np.ndarray] | None]  # histories and what to exclude, item rows of each row
Rank = Callable[[Iterable[Batch], int], Iterator[Ranking]]  # batches, k -> a ranking for each, in their order


@dataclass(frozen=True)
class Outcome:
    """What one system answered in one column.

    Attributes:
        position: Where the targets stand, (n,) each.
        items: (n, k) the first k slots of each row.
        invalid: (n,) answers that were no item.
        seconds: Wall time of ranking all rows.
    """

    position: Position
    items: np.ndarray
    invalid: np.ndarray
    seconds: float

    def save(self, path: Path) -> None:
        """Write an .npz file that is whole or absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **self.position._asdict(), items=self.items, invalid=self.invalid, seconds=self.seconds)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Outcome:
        with np.load(path) as saved:
            position = Position(*(saved[name] for name in Position._fields))
            return cls(position, saved["items"], saved["invalid"], float(saved["seconds"]))


def per_batch(rank: Callable[[list[np.ndarray], int, list[np.ndarray] | None], Ranking]) -> Rank:
    """A ranker out of a function of histories, k and what to exclude (or None), called for one batch at a time."""
    return lambda batches, k: (rank(histories, k, exclude) for histories, exclude in batches)


def seen_targets(rows: Examples) -> np.ndarray:
    """(n,) bool: the target is in the row's history, a certain miss where seen items are excluded."""
    return np.array([rows.targets[i] in rows.history(i) for i in range(len(rows))], dtype=bool)


def evaluate(
    rank: Rank, rows: Examples, k: int, column: str, batch_size: int, description: str = "evaluate"
) -> Outcome:
    """Rank the catalogue for every row and find the targets.

    Args:
        rank: Called once, with k and the batches of this process; `SidRanker.rank_batches`, or
            `per_batch(Popularity.rank)`.
        rows: Held-out rows.
        k: Largest cut-off.
        column: plain or seen_excluded.
        batch_size: Rows of a batch.
        description: Label of the progress bar.

    Returns:
        The outcome in the order of `rows`, the same in every process of an `accelerate launch`.

    Raises:
        ValueError: If `column` is unknown, or the ranker answers with too few or too many batches or rows, or with an
            excluded item.
    """
    if column not in COLUMNS:
        raise ValueError(f"Unknown column '{column}'; choose from {', '.join(COLUMNS)}.")
    started = time.monotonic()
    longest_first = np.argsort(-np.diff(rows.offsets), kind="stable")
    batches = [longest_first[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    mine = dealt(batches, processes.rank(), processes.count())
    answers = processes.gather(list(_answers(rank, rows, mine, k, column == "seen_excluded", description)))
    by_row = np.argsort(np.concatenate([answer["row"] for answer in answers]))
    found = {name: np.concatenate([answer[name] for answer in answers])[by_row] for name in answers[0]}
    position = Position(*(found[name] for name in Position._fields))
    return Outcome(position, found["items"], found["invalid"], time.monotonic() - started)


def dealt(batches: list[np.ndarray], rank: int, count: int) -> list[np.ndarray]:
    """The batches of process `rank` of `count`.

    They are dealt there and back (0 1 2, 2 1 0, …): dealt round and round, the first process would always have the
    longer histories.
    """
    return [batch for i, batch in enumerate(batches) if rank in (i % (2 * count), 2 * count - 1 - i % (2 * count))]


def _answers(
    rank: Rank, rows: Examples, batches: list[np.ndarray], k: int, exclude_seen: bool, description: str
) -> Iterator[dict[str, np.ndarray]]:
    """What an outcome needs to know of each batch, while the ranker is at the next one."""
    histories = ([rows.history(i) for i in batch] for batch in batches)
    rankings = rank(((batch, batch if exclude_seen else None) for batch in histories), k)
    pairs = progress(
        zip_longest(batches, rankings),
        description,
        total=sum(map(len, batches)),
        unit="rows" if processes.count() == 1 else f"rows, 1 of {processes.count()} processes",
        size=lambda pair: len(pair[0]),
    )
    for batch, ranking in pairs:
        if batch is None or ranking is None:
            found = "more" if batch is None else "fewer"
            raise ValueError(f"The ranker answered {found} batches than the {len(batches)} that were asked.")
        yield _answer(ranking, rows, batch, k, exclude_seen)


def _answer(ranking: Ranking, rows: Examples, batch: np.ndarray, k: int, exclude_seen: bool) -> dict[str, np.ndarray]:
    """What an outcome needs to know of one batch of rows."""
    if len(ranking) != len(batch):
        raise ValueError(f"The ranker answered {len(ranking)} rows where {len(batch)} were asked.")
    if exclude_seen:
        _check_excluded(ranking, [rows.history(i) for i in batch])
    items = np.full((len(batch), k), UNFILLED, dtype=np.int64)
    items[:, : ranking.items.shape[1]] = ranking.items[:, :k]
    invalid = ranking.invalid if ranking.invalid is not None else np.zeros(len(batch), dtype=np.int64)
    position = target_position(ranking, rows.targets[batch])
    return {"row": batch, **position._asdict(), "items": items, "invalid": invalid}


def _check_excluded(ranking: Ranking, histories: list[np.ndarray]) -> None:
    """A ranker that ignores `exclude` would be reported as if it had not."""
    for items, history in zip(ranking.items, histories, strict=True):
        wrong = np.intersect1d(items, history)
        if len(wrong):
            raise ValueError(
                f"The ranker returned the item rows {wrong[:3].tolist()}, which it was asked to exclude; "
                "its `rank` must honour `exclude`."
            )
