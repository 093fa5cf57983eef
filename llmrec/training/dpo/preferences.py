"""Preferences: prompts, the items that came next, and the items that these are preferred to; as a file and as examples.

The file has one line per prompt: `history` and `negatives` (lists of item_id), `target` (item_id) and, if known,
`user_id`, `sources` (a name per negative), `beam_ranks` (rank of each negative among the model's beams, -1 for those of
another source) and `oracle` (probability of each pair that the target is really preferred). `llmrec dpo` writes such a
file and reads one, so mined negatives can be inspected, changed and given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Value
from datasets import List as ListOf
from torch import Tensor

from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.model.prompts import HistoryEncoder
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY, SidTable
from llmrec.training.preference.policy import Prompts, check_batch

FILE = "preferences.parquet"
GIVEN = "file"  # source of negatives for which the file names none
NAMED = 3  # lines that a message names

# Columns with a value per negative: the name and the types of these values.
PER_NEGATIVE = {
    columns.SOURCES: ("strings", (pa.types.is_string, pa.types.is_large_string)),
    columns.BEAM_RANKS: ("whole numbers", (pa.types.is_integer,)),
    columns.ORACLE: ("numbers", (pa.types.is_floating, pa.types.is_integer)),
}


@dataclass(frozen=True)
class Preferences:
    """Prompts with their negatives.

    Attributes:
        prompts: Prompts and their targets.
        negatives: Item rows of the negatives of each prompt.
        sources: Name of the source of each negative.
        ranks: Rank of each negative among the model's beams, -1 for those of another source.
        oracle: Probability of each pair that the target is preferred; None if it is not known.
    """

    prompts: Prompts
    negatives: list[np.ndarray]
    sources: list[list[str]]
    ranks: list[np.ndarray]
    oracle: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.negatives)

    def take(self, places: Sequence[int]) -> Preferences:
        """Select the preferences of the given prompts, in the given order."""
        return Preferences(
            self.prompts.take(places),
            [self.negatives[i] for i in places],
            [self.sources[i] for i in places],
            [self.ranks[i] for i in places],
            self.oracle and [self.oracle[i] for i in places],
        )

    def sample(self, count: int, seed: int) -> Preferences:
        """Select the preferences of `count` random prompts, or of all if there are no more, in their order."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]).tolist())

    def whole_batches(self, batch_size: int, seed: int) -> Preferences:
        """Drop a few at random, so that every optimiser step of an epoch has `batch_size` prompts.

        A last step of fewer prompts would weigh them more, and accelerate would repeat some to share it out.

        Raises:
            ValueError: If there are fewer than one batch.
        """
        check_batch(len(self), batch_size)
        return self.sample(len(self) // batch_size * batch_size, seed)

    def save(self, path: Path, item_ids: Sequence[str]) -> None:
        """Write the file that `read_preferences` reads; it is whole or absent."""
        ids = np.asarray(item_ids, dtype=object)
        data = {
            columns.USER_ID: self.prompts.user_ids,
            columns.HISTORY: [ids[rows].tolist() for rows in self.prompts.histories],
            columns.TARGET: ids[self.prompts.targets].tolist(),
            columns.NEGATIVES: [ids[rows].tolist() for rows in self.negatives],
            columns.SOURCES: self.sources,
            columns.BEAM_RANKS: [rows.tolist() for rows in self.ranks],
        }
        temporary = path.with_name(path.name + ".tmp")
        pq.write_table(pa.table(data), temporary)
        temporary.replace(path)

    def examples(self) -> Dataset:
        """Examples of the trainer: `rows` of the history, `items` (target first), `smoothing` of each pair."""
        if self.oracle is None:
            smoothing = [[0.0] * len(rows) for rows in self.negatives]
        else:
            smoothing = [np.clip(1 - each, 0, 0.5).tolist() for each in self.oracle]
        return Dataset.from_dict(
            {
                "rows": [rows.tolist() for rows in self.prompts.histories],
                "items": [[int(t), *n] for t, n in zip(self.prompts.targets, self.negatives, strict=True)],
                "smoothing": smoothing,
            },
            features=Features(
                rows=ListOf(Value("int64")), items=ListOf(Value("int64")), smoothing=ListOf(Value("float64"))
            ),
        )


@dataclass
class PreferenceCollator:
    """Prompts, completions and smoothing of a batch.

    Args:
        prefix: Token ids before the history.
        encoder: Turns item rows into tokens.
        max_history: Latest items of a history that are shown.
        pad_token_id: Token of padding.
    """

    prefix: list[int]
    encoder: HistoryEncoder
    max_history: int
    pad_token_id: int

    def __call__(self, examples: list[JsonObject]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T), `completions` (B, 1 + M, L), target first, `smoothing` (B, M)."""
        histories = [each["rows"][-self.max_history :] for each in examples]
        ids, mask = self.encoder.pad_prompts(self.prefix, histories, self.pad_token_id)
        most = max(len(each["items"]) for each in examples)
        completions = np.full((len(examples), most, self.encoder.tokens_NL.shape[1]), EMPTY)
        smoothing = np.zeros((len(examples), most - 1), np.float32)
        for row, each in enumerate(examples):
            completions[row, : len(each["items"])] = self.encoder.tokens_NL[each["items"]]
            smoothing[row, : len(each["smoothing"])] = each["smoothing"]
        arrays = {"input_ids": ids, "attention_mask": mask, "completions": completions}
        return {name: torch.from_numpy(array) for name, array in {**arrays, "smoothing": smoothing}.items()}


def read_preferences(path: str | Path, catalog: Catalog, table: SidTable) -> Preferences:
    """Read the preferences of a file, parquet or JSONL.

    Raises:
        ValueError: If it cannot be read, lacks a column, or a row cannot be trained on; with every kind of problem and
            the first rows of each.
    """
    data = _read_table(Path(path))
    missing = [n for n in (columns.HISTORY, columns.TARGET, columns.NEGATIVES) if n not in data.column_names]
    if missing:
        raise ValueError(f"'{path}' lacks the columns {missing}; it has {data.column_names}.")
    histories, negatives = (_item_rows(data, name, catalog, path) for name in (columns.HISTORY, columns.NEGATIVES))
    targets = _item_rows(data, columns.TARGET, catalog, path)
    _check_types(path, data)
    more = (columns.USER_ID, *PER_NEGATIVE)
    users, sources, ranks, oracle = (data[n].to_pylist() if n in data.column_names else None for n in more)
    per_negative = {name: lists for name, lists in zip(PER_NEGATIVE, (sources, ranks, oracle), strict=True) if lists}
    _check_rows(path, histories, targets, negatives, per_negative, table)
    return Preferences(
        Prompts(users or [str(i) for i in range(len(targets))], histories, targets, histories),
        negatives,
        sources or [[GIVEN] * len(rows) for rows in negatives],
        [np.asarray(each) for each in ranks or [[-1] * len(rows) for rows in negatives]],
        oracle and [np.asarray(each, dtype=np.float64) for each in oracle],
    )


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"preferences '{path}' does not exist; give a parquet or JSONL file.")
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pj.read_json(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"'{path}' is neither a parquet nor a JSONL file ({error}).") from error
    if len(table) == 0:
        raise ValueError(f"'{path}' has no rows; nothing could be trained on.")
    return table


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _item_rows(data: pa.Table, name: str, catalog: Catalog, path: str | Path) -> Any:
    """(n,) item rows of ids in a column, or such an array for each of n lists."""
    column = data[name]
    try:
        if not _is_list(column.type):
            return catalog.item_rows(column.combine_chunks())
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        return np.split(catalog.item_rows(pc.list_flatten(column).combine_chunks()), np.cumsum(lengths)[:-1])
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"'{path}', column {name}: {error}") from error


def _check_types(path: str | Path, data: pa.Table) -> None:
    """Refuse columns beside the negatives that are not lists of what they should be.

    Raises:
        ValueError: With every such column.
    """
    wrong = []
    for name, (what, kinds) in PER_NEGATIVE.items():
        kind = data[name].type if name in data.column_names else None
        if kind is not None and not (_is_list(kind) and any(fits(kind.value_type) for fits in kinds)):
            wrong.append(f"{name} is of type {kind}, but lists {what}, one per negative")
    if wrong:
        raise ValueError(f"'{path}': {'; '.join(wrong)}. Correct or remove the column.")


def _check_rows(
    path: str | Path,
    histories: list[np.ndarray],
    targets: np.ndarray,
    negatives: list[np.ndarray],
    per_negative: dict[str, list[Any]],
    table: SidTable,
) -> None:
    """Refuse rows that cannot be trained on.

    Raises:
        ValueError: With every kind of problem.
    """
    if not isinstance(histories, list) or not isinstance(negatives, list) or isinstance(targets, list):
        raise ValueError(f"'{path}': history and negatives are lists of item_ids, target is one item_id.")
    codes = table.codes(np.arange(table.num_items))
    faults = {
        "no history": [len(rows) == 0 for rows in histories],
        "no negatives": [len(rows) == 0 for rows in negatives],
        "the target, or an item with its semantic ID, among the negatives": [
            bool((codes[rows] == codes[target]).all(axis=1).any())
            for rows, target in zip(negatives, targets, strict=True)
        ],
    }
    for name, lists in per_negative.items():
        pairs = zip(lists, negatives, strict=True)
        faults[f"another number of {name} than of negatives"] = [
            len([value for value in each or () if value is not None]) != len(rows) for each, rows in pairs
        ]
    if columns.ORACLE in per_negative:
        faults["an oracle outside [0, 1]"] = [
            not all(p is not None and 0 <= p <= 1 for p in each or ()) for each in per_negative[columns.ORACLE]
        ]
    found = {what: np.flatnonzero(is_faulty) for what, is_faulty in faults.items() if any(is_faulty)}
    if found:
        listed = [f"{what} ({len(rows)}, first: {rows[:NAMED].tolist()})" for what, rows in found.items()]
        raise ValueError(f"'{path}' has rows with {'; and with '.join(listed)}. Correct or remove them.")
