"""Scores of one's own: what any other recommender says about places of the users' sequences, read from a parquet file.

A place is a user and the position of the answer in the user's sequence, counted from 0: those of a training sequence of
T items are 0 to T - 1, and the held-out examples follow in the order of split.parquet, valid before test. A query that
names a training sequence is answered by its place; a history alone, by the held-out example that has this history (by
the mean over several, if they have the same). What the file says nothing about gets popularity.

Shapes: Q queries, H places of a window, N items, E lines of the file, R places in it, K items of the longest of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from scipy import sparse
from torch import Tensor

from llmrec.baselines.counted.entries import place_of
from llmrec.baselines.counted.popularity import Popularity
from llmrec.baselines.queries import Queries, before, queries_of
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.runtime.reading import reading

POSITION, SCORE = "position", "score"
COLUMNS = (columns.USER_ID, POSITION, columns.ITEM_ID, SCORE)
# Odd numbers, by which keys are computed modulo 2^64.
OF_A_PLACE, OF_A_HISTORY = 0x9E3779B97F4A7C15 - 2**64, 0x2545F4914F6CDD1D
CPU = torch.device("cpu")


class Scores(Popularity):
    """Scores from a file, then the popular items; the probabilities of a place are the softmax of its scores.

    Arguments as for Popularity, but `learned` is needed; `read_scores` makes it from a file.
    """

    name = "scores"

    def __init__(
        self,
        catalog: Catalog,
        device: str | torch.device = "cpu",
        learned: Mapping[str, Tensor] | None = None,
        **options: Any,  # the class `options` checks them
    ):
        super().__init__(catalog, device, **options)
        assert learned is not None, "read_scores makes it"
        self.learned = dict(learned)
        self.keys, self.listed, self.values = (
            self.learned[name].to(self.device) for name in ("keys", "items", "probabilities")
        )

    def spread(self, queries: Queries) -> Tensor:
        """(Q, N) float32 probabilities that the file gives; a row is 0 if it gives none."""
        items, _ = before(queries)
        user = queries.user[queries.sequence]
        of_place = place_keys(user, queries.start[queries.sequence] + queries.length)
        key = torch.where(user < 0, history_keys(items, queries.length), of_place)
        row = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        known = self.keys[row] == key
        found = self.values.new_zeros(len(key), len(self.count))
        return found.scatter_add_(1, self.listed[row].long(), self.values[row] * known[:, None])

    def scores(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """(B, N) probabilities that the file gives for each history of a held-out example."""
        return sparse.csr_array(self.spread(queries_of(histories, self.device)).cpu().numpy())

    def tensors(self) -> dict[str, Tensor]:
        """Keys of the places, and the items and probabilities of each."""
        return self.learned


def place_keys(user: Tensor, position: Tensor) -> Tensor:
    """Keys of places, as many int64 as there are users."""
    return (user + 1) * OF_A_PLACE + position


def history_keys(items: Tensor, lengths: Tensor) -> Tensor:
    """(Q,) int64 keys of the first `lengths` (Q,) of `items` (Q, H): a polynomial of the items, modulo 2^64."""
    powers = torch.full(items.shape[1:], OF_A_HISTORY, device=items.device).cumprod(0)  # (H,)
    real = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    return ((items + 1) * powers * real).sum(dim=1) ^ lengths


def read_scores(path: str | Path, catalog: Catalog) -> dict[str, Tensor]:
    """Read a parquet file of scores.

    Args:
        path: File with the columns `user_id`, `position`, `item_id` and `score`; scores are any finite numbers.
        catalog: Catalogue of the users and items.

    Returns:
        keys (R,) int64, ascending; items (R, K) int32; probabilities (R, K) float32, 0 beyond the last item.

    Raises:
        ValueError: If the file is unreadable, lacks a column or is empty, names a user, place or item that the
            catalogue lacks, an item of a place twice, or a score that is not finite.
    """
    lines = _lines(path)
    wrong = lines.filter(~pl.col(SCORE).is_finite().fill_null(False))
    if len(wrong):
        raise ValueError(f"{path} has {len(wrong)} scores that are no finite number; leave these lines out.")
    try:
        rows = catalog.item_rows(lines[columns.ITEM_ID].to_arrow())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    lines = lines.with_columns(pl.Series("row", rows))
    if lines.select(columns.USER_ID, POSITION, "row").is_duplicated().any():
        raise ValueError(f"{path} scores an item twice at the same place; keep one line of each.")
    place = (columns.USER_ID, POSITION)
    power = (pl.col(SCORE) - pl.col(SCORE).max().over(place)).exp()
    shares = lines.with_columns((power / power.sum().over(place)).alias("share"))
    found = shares.join(_known_places(lines, catalog, str(path)), on=place)
    # Held-out examples with the same history share a key.
    found = found.with_columns(pl.struct(place).n_unique().over("key").alias("sharing"))
    found = found.group_by("key", "row").agg((pl.col("share") / pl.col("sharing")).sum()).sort("key", "row")
    keys, number = np.unique(found["key"].to_numpy(), return_inverse=True)
    column = place_of(number)
    listed = np.zeros((len(keys), int(column.max()) + 1), np.int32)
    probabilities = np.zeros(listed.shape, np.float32)
    listed[number, column], probabilities[number, column] = found["row"].to_numpy(), found["share"].to_numpy()
    arrays = {"keys": keys, "items": listed, "probabilities": probabilities}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def places(catalog: Catalog) -> pl.DataFrame:
    """Every place of a catalogue at which an item is to be predicted: user_id, position and key."""
    train = catalog.train
    lengths = np.diff(train.offsets) + 1
    user = np.repeat(np.arange(len(train)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    keys = place_keys(torch.from_numpy(user), torch.from_numpy(position)).numpy()
    found = [_frame([train.user_ids[i] for i in user], position, keys)]
    upcoming = dict(zip(train.user_ids, lengths.tolist(), strict=True))
    for split in ("valid", "test"):
        examples = catalog.examples(split)
        histories = [examples.history(i) for i in range(len(examples))]
        asked = queries_of(histories, CPU)
        of_split = []
        for user_id, history in zip(examples.user_ids, histories, strict=True):
            # The history may be cut; without a training sequence, the first item was never to be predicted.
            of_split.append(max(upcoming.get(user_id, 1), len(history)))
            upcoming[user_id] = of_split[-1] + 1
        keys = history_keys(asked.items, asked.length).numpy()
        found.append(_frame(examples.user_ids, np.array(of_split, dtype=np.int64), keys))
    return pl.concat(found)


def _frame(user_ids: list[str], position: np.ndarray, keys: np.ndarray) -> pl.DataFrame:
    schema = {columns.USER_ID: pl.String, POSITION: pl.Int64, "key": pl.Int64}
    return pl.DataFrame({columns.USER_ID: user_ids, POSITION: position, "key": keys}, schema=schema)


def _known_places(lines: pl.DataFrame, catalog: Catalog, path: str) -> pl.DataFrame:
    """Places of the catalogue, once it is clear that they hold all of the lines."""
    known = places(catalog)
    users = lines.join(known, on=columns.USER_ID, how="anti")[columns.USER_ID].unique(maintain_order=True)
    if len(users):
        raise ValueError(
            f"{path} names {len(users)} users that {catalog.source}/split.parquet lacks; first: "
            f"{users.head(3).to_list()}. Remove them, or give the catalogue that the scores were made on."
        )
    beyond = lines.join(known, on=(columns.USER_ID, POSITION), how="anti")
    if len(beyond):
        user_id, position = beyond[columns.USER_ID][0], beyond[POSITION][0]
        last = known.filter(pl.col(columns.USER_ID) == user_id)[POSITION].to_list()[-1]
        raise ValueError(
            f"{path} names {len(beyond)} places that no sequence has; first: position {position} of user '{user_id}', "
            f"whose last is {last}. A position is the index of the answer in the user's sequence, from 0."
        )
    return known


def _lines(path: str | Path) -> pl.DataFrame:
    """The columns of the file, in their order and types."""
    with reading(path, "a parquet file", f"give a parquet file of scores, with {', '.join(COLUMNS)}"):
        table = pl.DataFrame(pq.read_table(path, partitioning=None))  # a damaged file panics in polars
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {table.columns}.")
    types = pl.Schema(zip(COLUMNS, (pl.String, pl.Int64, pl.String, pl.Float64), strict=True))
    try:
        table = table.select(COLUMNS).cast(types)
    except pl.exceptions.PolarsError as error:
        found = str(error).splitlines()[0]
        raise ValueError(f"{path} needs columns of the types {dict(types)}: {found}.") from None
    if table.is_empty():
        raise ValueError(f"{path} has no lines; give the scores of at least one place.")
    return table
