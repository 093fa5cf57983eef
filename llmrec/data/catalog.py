"""Catalog: what later stages may know of items and training behaviour, read once and validated once.

A catalogue directory holds items.parquet, interactions.parquet and split.parquet (see docs/formats.md). The position
of an item in items.parquet is its item row; every tensor of llmrec is in that order. `Catalog.train` is the only way
to behaviour that tokenizers, collaborative views and baselines are given, so the held-out items cannot leak into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.data import columns
from llmrec.data.conditions import matches
from llmrec.runtime.manifest import verify

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Rows:
    """Rows of one split: who, what they did before (item rows, oldest first) and what came next.

    Attributes:
        user_ids: External user id of each row; a user may own several rows.
        values: (sum of history lengths,) int64 item rows of all histories, one after another.
        offsets: (num_rows + 1,) int64; history i is `values[offsets[i]:offsets[i + 1]]`.
        targets: (num_rows,) int64 item rows.
    """

    user_ids: list[str]
    values: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def history(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def sequence(self, i: int) -> np.ndarray:
        """History and target of row i as one array of item rows."""
        return np.append(self.history(i), self.targets[i])

    def sequences(self) -> list[np.ndarray]:
        return [self.sequence(i) for i in range(len(self))]

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Ascending positions of `count` random rows, or of all where there are no more."""
        if count >= len(self):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), size=count, replace=False))

    def take(self, indices: Sequence[int]) -> Rows:
        """The given rows, in the given order."""
        histories = [self.history(i) for i in indices]
        return Rows(
            user_ids=[self.user_ids[i] for i in indices],
            values=np.concatenate([np.empty(0, np.int64), *histories]),
            offsets=np.cumsum([0, *map(len, histories)]),
            targets=self.targets[np.asarray(indices, dtype=np.int64)],
        )


class Catalog:
    """Items and split of a catalogue directory.

    Args:
        items: Table with `item_id` and `title` and any further columns; its order defines the item rows.
        split: Table with `user_id`, `split`, `history` (list of item_id, oldest first) and `target`.
        source: Directory that messages name.

    Raises:
        ValueError: If a column is missing, or an item_id is repeated or empty.
    """

    def __init__(self, items: pa.Table, split: pa.Table, source: str = "catalog"):
        _require(items, (columns.ITEM_ID, columns.TITLE), f"{source}/items.parquet")
        _require(split, (columns.USER_ID, columns.SPLIT, columns.HISTORY, columns.TARGET), f"{source}/split.parquet")
        self.items, self.source = items, source
        self.item_ids: list[str] = items[columns.ITEM_ID].cast(pa.string()).to_pylist()
        self.row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        if len(self.row_of) < len(self.item_ids):
            seen: set[str] = set()
            repeated = next(i for i in self.item_ids if i in seen or seen.add(i))
            raise ValueError(f"{source}/items.parquet repeats item_id '{repeated}'; every item needs one row.")
        empty = next((row for row, item_id in enumerate(self.item_ids) if not item_id), None)
        if empty is not None:
            raise ValueError(f"{source}/items.parquet has an empty item_id in item row {empty}; every item needs one.")
        self._item_id_array = pa.array(self.item_ids)
        self._split = split

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read the catalogue directory that `llmrec prepare` wrote.

        Raises:
            ValueError: If it is unfinished, was changed, or a file of it is not what docs/formats.md says.
        """
        path = verify(path, "prepare")
        return cls(_read(path / "items.parquet"), _read(path / "split.parquet"), str(path))

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @cached_property
    def titles(self) -> list[str]:
        return [title or "" for title in self.items[columns.TITLE].to_pylist()]

    def where(self, *conditions: str) -> list[str]:
        """item_ids of the items that meet all conditions on the columns of items.parquet, in catalogue order.

        Args:
            conditions: Such as 'price <= 20' or 'genres contains Drama'; `llmrec.data.conditions` says what there is.

        Raises:
            ValueError: With every condition that cannot be read, or does not fit its column.
        """
        return [self.item_ids[row] for row in np.flatnonzero(matches(self.items, conditions))]

    @cached_property
    def train(self) -> Rows:
        """Training rows: one whole training sequence per user (its last item is the row's target)."""
        return self.rows("train")

    @cached_property
    def training_counts(self) -> np.ndarray:
        """(N,) int64 training interactions of each item."""
        return np.bincount(np.concatenate([self.train.values, self.train.targets]), minlength=self.num_items)

    def rows(self, split: str) -> Rows:
        """Rows of one split with item ids resolved to item rows.

        Raises:
            ValueError: If `split` is not train, valid or test, or a row names an item that items.parquet lacks.
        """
        if split not in SPLITS:
            raise ValueError(f"Unknown split '{split}'; choose from {', '.join(SPLITS)}.")
        table = self._split.filter(pc.equal(self._split[columns.SPLIT], split)).combine_chunks()
        if table.num_rows == 0:
            return Rows([], np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64))
        history = table[columns.HISTORY].combine_chunks()
        lengths = pc.list_value_length(history).to_numpy(zero_copy_only=False).astype(np.int64)
        return Rows(
            user_ids=table[columns.USER_ID].cast(pa.string()).to_pylist(),
            values=self.item_rows(history.flatten()),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            targets=self.item_rows(table[columns.TARGET].combine_chunks()),
        )

    def item_rows(self, item_ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Item rows of external ids.

        Returns:
            (len(item_ids),) int64.

        Raises:
            ValueError: If an id is not in the catalogue; the message names the first three.
        """
        if not isinstance(item_ids, pa.Array | pa.ChunkedArray):
            item_ids = pa.array(item_ids, pa.string())
        found = pc.index_in(item_ids.cast(pa.string()), value_set=self._item_id_array)
        if found.null_count:
            missing = item_ids.filter(pc.is_null(found)).slice(0, 3).to_pylist()
            raise ValueError(
                f"{found.null_count} item ids are not in {self.source}/items.parquet; first: {missing}. "
                "Run `llmrec prepare` again, or remove them."
            )
        return found.to_numpy(zero_copy_only=False).astype(np.int64)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error}); run `llmrec prepare` again.") from error


def _require(table: pa.Table, names: Sequence[str], source: str) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{source} lacks the columns {missing}; it has {table.column_names}.")
