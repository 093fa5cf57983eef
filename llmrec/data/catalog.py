"""Catalog: items and their training interactions, read and validated once for all later stages.

A catalogue directory holds items.parquet, interactions.parquet and split.parquet (see docs/formats.md). The position
of an item in items.parquet is its item row; every tensor of llmrec is in that order. Tokenizers, collaborative views
and baselines learn behaviour from `Catalog.train` alone, so held-out items cannot leak into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.dataset import Dataset, dataset

from llmrec.data import columns
from llmrec.data.conditions import matches
from llmrec.data.examples import Examples
from llmrec.data.item_ids import ItemIds, TextOf, Texts
from llmrec.runtime.manifest import verify
from llmrec.runtime.reading import reading

SPLITS = ("train", "valid", "test")


class Catalog:
    """Items and split of a catalogue directory.

    Args:
        items: Table with `item_id` and `title` and any further columns; its order defines the item rows.
        split: Table with `user_id`, `split`, `history` (list of item_id, oldest first) and `target`, or a file of it,
            of which `examples` reads one split at a time.
        source: Directory that error messages name.

    Attributes:
        items: Table of the items, one item row each.
        item_ids: External id of each item row.
        row_of: Item row of each external id.
        source: Directory that the catalogue was read from.

    Raises:
        ValueError: If a column is missing or has another type, or an item_id is repeated or empty.

    >>> items = pa.table({"item_id": ["a", "b", "c"], "title": ["Saw", "Jaws", "Up"], "price": [5, 9, None]})
    >>> split = pa.table({"user_id": ["ann"], "split": ["test"], "history": [["c", "a"]], "target": ["b"]})
    >>> catalog = Catalog(items, split)
    >>> catalog.num_items, catalog.titles, catalog.row_of["c"]
    (3, ['Saw', 'Jaws', 'Up'], 2)
    >>> catalog.examples("test").sequence(0).tolist(), len(catalog.train)
    ([2, 0, 1], 0)
    """

    def __init__(self, items: pa.Table, split: pa.Table | Dataset, source: str = "catalog"):
        of_items = {columns.ITEM_ID: _is_id, columns.TITLE: _is_title}
        _require(items.schema, items.num_rows, of_items, f"{source}/items.parquet")
        if isinstance(split, pa.Table):
            _require(split.schema, split.num_rows, SPLIT_TYPES, f"{source}/split.parquet")
            _refuse_empty_cells(split, source)
        self.items, self.source = items, source
        self.item_ids = ItemIds(items[columns.ITEM_ID].cast(pa.string()).fill_null(""))
        repeated = self.item_ids.first_repeated
        if repeated is not None:
            raise ValueError(
                f"{source}/items.parquet repeats item_id '{self.item_ids[repeated]}'; every item needs one row."
            )
        empty = pc.index_in(pa.scalar("", pa.large_string()), value_set=self.item_ids.array).as_py()
        if empty is not None:
            raise ValueError(f"{source}/items.parquet has an empty item_id in item row {empty}; every item needs one.")
        self.row_of, self._split = self.item_ids.row_of, split

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read the catalogue directory that `llmrec prepare` wrote.

        Args:
            path: The directory.

        Raises:
            ValueError: If it is unfinished, was changed, or a file of it is not what docs/formats.md says.
        """
        path = verify(path, "prepare")
        items, file = _read(path / "items.parquet"), path / "split.parquet"
        with _reading(file):
            split = dataset(file, format="parquet", partitioning=None)
            num_rows = split.count_rows()
        _require(split.schema, num_rows, SPLIT_TYPES, str(file))
        return cls(items, split, str(path))

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @cached_property
    def titles(self) -> Texts:
        """Title of each item row; "" if it has none."""
        return Texts(self.items[columns.TITLE].cast(pa.large_string()).fill_null(""))

    @cached_property
    def title_of(self) -> TextOf:
        """Title of each external id."""
        return TextOf(self.item_ids, self.titles)

    def where(self, *conditions: str) -> list[str]:
        """Find the items that meet all conditions on the columns of items.parquet.

        Args:
            conditions: SQL expressions such as "price <= 20 AND array_contains(genres, 'Drama')"; docs/recommend.md
                lists what may stand in them.

        Returns:
            Their item_ids, in catalogue order.

        Raises:
            ValueError: With every condition that cannot be read, or does not fit its columns.

        >>> items = pa.table({"item_id": ["a", "b", "c"], "title": ["Saw", "Jaws", "Up"], "price": [5, 9, None]})
        >>> empty = {name: pa.array([], pa.string()) for name in ("user_id", "split", "history", "target")}
        >>> Catalog(items, pa.table(empty)).where("title ILIKE '%aw%' AND price > 5")
        ['b']
        """
        return self.item_ids.of(np.flatnonzero(matches(self.items, conditions)))

    @cached_property
    def train(self) -> Examples:
        """Training examples, one for each user; history and target together are the user's training sequence.

        Held-out interactions are not among them.
        """
        return self.examples("train")

    @cached_property
    def training_counts(self) -> np.ndarray:
        """Number of training interactions of each item, (num_items,) int64."""
        return np.bincount(np.concatenate([self.train.values, self.train.targets]), minlength=self.num_items)

    def examples(self, split: str) -> Examples:
        """Examples of one split, with item ids resolved to item rows.

        Args:
            split: train, valid or test.

        Raises:
            ValueError: If `split` is none of these, or an example names an item that items.parquet lacks.
        """
        if split not in SPLITS:
            raise ValueError(f"Unknown split '{split}'; choose from {', '.join(SPLITS)}.")
        with _reading(Path(self.source) / "split.parquet"):
            name = pc.field(columns.SPLIT)
            is_asked = (name == split) | name.is_null()
            rows = self._split.filter(is_asked)
            table = rows if isinstance(rows, pa.Table) else rows.to_table(list(SPLIT_TYPES))
        _refuse_empty_cells(table, self.source)
        if table.num_rows == 0:
            return Examples([], np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64))
        history = table[columns.HISTORY]
        lengths = pc.list_value_length(history).to_numpy().astype(np.int64)
        return Examples(
            user_ids=table[columns.USER_ID].cast(pa.string()).to_pylist(),
            values=self.item_rows(pa.chunked_array([part.flatten() for part in history.chunks])),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            targets=self.item_rows(table[columns.TARGET]),
        )

    def histories(self, split: str) -> list[list[str]]:
        """Histories of the examples of one split, as `Recommender.recommend` takes them.

        Args:
            split: train, valid or test.

        Returns:
            item_ids of each example, oldest first, without the target.

        Raises:
            ValueError: As `examples` does.

        >>> items = pa.table({"item_id": ["a", "b", "c"], "title": ["Saw", "Jaws", "Up"]})
        >>> held_out = {"user_id": ["u"], "split": ["test"], "history": [["c", "a"]], "target": ["b"]}
        >>> Catalog(items, pa.table(held_out)).histories("test")
        [['c', 'a']]
        """
        examples = self.examples(split)
        return [self.item_ids.of(examples.history(place)) for place in range(len(examples))]

    def user_histories(self, user_ids: Sequence[str]) -> list[list[str]]:
        """All interactions of users, held-out ones included: what is known of them when they are recommended to.

        Args:
            user_ids: External ids.

        Returns:
            For each user the item_ids, oldest first; none for a user that interactions.parquet lacks.

        Raises:
            ValueError: If the file is absent or unreadable.
        """
        path = Path(self.source) / "interactions.parquet"
        if not path.is_file():
            raise ValueError(
                f"'{path}' does not exist, so no histories of users are known; run `llmrec prepare` again."
            )
        table = _read(path)
        _require(table.schema, table.num_rows, {columns.USER_ID: _is_id, columns.ITEM_ID: _is_id}, str(path))
        table = table.filter(pc.is_in(table[columns.USER_ID], pa.array(user_ids, pa.string())))
        found: dict[str, list[str]] = {}
        pairs = (table[name].to_pylist() for name in (columns.USER_ID, columns.ITEM_ID))
        for user_id, item_id in zip(*pairs, strict=True):
            found.setdefault(user_id, []).append(item_id)
        return [found.get(user_id, []) for user_id in user_ids]

    def item_rows(self, item_ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Item rows of external ids.

        Args:
            item_ids: External ids, any number of times each.

        Returns:
            (len(item_ids),) int64.

        Raises:
            ValueError: If an id is not in the catalogue; the message names the first three.

        >>> items = pa.table({"item_id": ["a", "b"], "title": ["Saw", "Jaws"]})
        >>> empty = {name: pa.array([], pa.string()) for name in ("user_id", "split", "history", "target")}
        >>> Catalog(items, pa.table(empty)).item_rows(["b", "a", "b"]).tolist()
        [1, 0, 1]
        """
        if not isinstance(item_ids, pa.Array | pa.ChunkedArray):
            item_ids = pa.array(item_ids, pa.string())
        found = pc.index_in(item_ids.cast(pa.large_string()), value_set=self.item_ids.array)
        if found.null_count:
            missing = item_ids.filter(pc.is_null(found)).slice(0, 3).to_pylist()
            raise ValueError(
                f"{found.null_count} item ids are not in {self.source}/items.parquet; first: {missing}. "
                "Run `llmrec prepare` again, or remove them."
            )
        return np.asarray(found).astype(np.int64)


def _reading(path: Path) -> AbstractContextManager[None]:
    return reading(path, "a parquet file", "run `llmrec prepare` again")


def _read(path: Path) -> pa.Table:
    with _reading(path):
        return pq.read_table(path, partitioning=None)


def _refuse_empty_cells(split: pa.Table, source: str) -> None:
    empty_cells = [name for name in SPLIT_TYPES if split[name].null_count]
    if empty_cells:
        raise ValueError(f"{source}/split.parquet has empty cells in {empty_cells}; run `llmrec prepare` again.")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind)


def _is_title(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_null(kind)


def _is_list_of_ids(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and (_is_id(kind.value_type) or pa.types.is_null(kind.value_type))


SPLIT_TYPES = {
    columns.USER_ID: _is_id,
    columns.SPLIT: _is_text,
    columns.HISTORY: _is_list_of_ids,
    columns.TARGET: _is_id,
}


def _require(schema: pa.Schema, num_rows: int, types: Mapping[str, Callable[[pa.DataType], bool]], source: str) -> None:
    """Refuse a table that lacks a column, has it twice, or has it in another type; one without rows has any types."""
    missing = [name for name in types if name not in schema.names]
    if missing:
        raise ValueError(f"{source} lacks the columns {missing}; it has {schema.names}.")
    repeated = [name for name in types if schema.names.count(name) > 1]
    if repeated:
        raise ValueError(f"{source} has the columns {repeated} more than once; write each once.")
    wrong = [f"{name} is {schema.field(name).type}" for name in types if not types[name](schema.field(name).type)]
    if wrong and num_rows:
        raise ValueError(f"{source} has columns of other types than docs/formats.md says: {', '.join(wrong)}.")
