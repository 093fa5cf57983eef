"""Preferences as a file: `llmrec dpo` writes the negatives that it has mined, and reads such a file instead of mining.

The file has one line per prompt: `history` and `negatives` (lists of item_id), `target` (item_id) and, if known,
`user_id`, `sources` (a name per negative), `beam_ranks` (rank of each negative among the model's beams, -1 for those of
another source) and `oracle` (probability of each pair that the target is really preferred). So mined negatives can be
inspected, changed and given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.runtime import disk
from llmrec.runtime.parquet import parquet_table
from llmrec.runtime.reading import reading
from llmrec.sid.table import SidTable
from llmrec.training.dpo.preferences import Preferences
from llmrec.training.preference.policy import Prompts

FILE = "preferences.parquet"
GIVEN = "file"  # source of negatives for which the file names none
NAMED = 3  # lines that a message names

# Columns with a value per negative: the name and the types of these values.
PER_NEGATIVE = {
    columns.SOURCES: ("strings", (pa.types.is_string, pa.types.is_large_string)),
    columns.BEAM_RANKS: ("whole numbers", (pa.types.is_integer,)),
    columns.ORACLE: ("numbers", (pa.types.is_floating, pa.types.is_integer)),
}


def write_preferences(preferences: Preferences, path: Path, item_ids: Sequence[str]) -> None:
    """Write the file that `read_preferences` reads; it is whole or absent.

    Args:
        preferences: Preferences to write.
        path: File to write.
        item_ids: External id of each item row.
    """
    ids, prompts = np.asarray(item_ids, dtype=object), preferences.prompts
    data = {
        columns.USER_ID: prompts.user_ids,
        columns.HISTORY: [ids[items].tolist() for items in prompts.histories],
        columns.TARGET: ids[prompts.targets].tolist(),
        columns.NEGATIVES: [ids[items].tolist() for items in preferences.negatives],
        columns.SOURCES: preferences.sources,
        columns.BEAM_RANKS: [ranks.tolist() for ranks in preferences.ranks],
    }
    with disk.replacing(path) as temporary:
        pq.write_table(pa.table(data), temporary)


def read_preferences(path: str | Path, catalog: Catalog, table: SidTable) -> Preferences:
    """Read the preferences of a parquet or JSONL file.

    Args:
        path: File to read.
        catalog: Catalogue that has its items.
        table: Semantic IDs of the catalogue.

    Raises:
        ValueError: If it cannot be read, lacks a column, or a line cannot be trained on; with every kind of problem and
            the first lines of each.
    """
    data = _read_table(Path(path))
    missing = [n for n in (columns.HISTORY, columns.TARGET, columns.NEGATIVES) if n not in data.column_names]
    if missing:
        raise ValueError(f"'{path}' lacks the columns {missing}; it has {data.column_names}.")
    _check_types(path, data)
    histories, negatives = (_item_lists(data, name, catalog, path) for name in (columns.HISTORY, columns.NEGATIVES))
    targets = _item_rows(data[columns.TARGET], columns.TARGET, catalog, path)
    _check_lines(path, data, histories, targets, negatives, table)
    given = {name: data[name].to_pylist() for name in (columns.USER_ID, *PER_NEGATIVE) if name in data.column_names}
    users = given.get(columns.USER_ID) or [str(line) for line in range(len(targets))]
    sources = given.get(columns.SOURCES) or [[GIVEN] * len(items) for items in negatives]
    ranks = given.get(columns.BEAM_RANKS) or [[-1] * len(items) for items in negatives]
    oracle = given.get(columns.ORACLE)
    return Preferences(
        Prompts(users, histories, targets, histories),
        negatives,
        sources,
        [np.asarray(each) for each in ranks],
        oracle and [np.asarray(each, dtype=np.float64) for each in oracle],
    )


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"preferences '{path}' does not exist; give a parquet or JSONL file.")
    if path.suffix == ".parquet":
        table = parquet_table(path, "write it again")
    else:
        with reading(path, "a file of JSON lines", "write it again"):
            table = pj.read_json(path)
            table = table.rename_columns(table.column_names)  # which are decoded only when they are asked for
    if len(table) == 0:
        raise ValueError(f"'{path}' has no lines; there is nothing to train on.")
    return table


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _check_types(path: str | Path, data: pa.Table) -> None:
    """Refuse columns that do not hold what they should.

    Raises:
        ValueError: If history, target or negatives have the wrong shape, or with every other column that is wrong.
    """
    shapes = ((columns.HISTORY, True), (columns.NEGATIVES, True), (columns.TARGET, False))
    if any(_is_list(data[name].type) != is_list for name, is_list in shapes):
        raise ValueError(f"'{path}': history and negatives are lists of item_ids, target is one item_id.")
    wrong = []
    for name, (what, kinds) in PER_NEGATIVE.items():
        kind = data[name].type if name in data.column_names else None
        if kind is not None and not (_is_list(kind) and any(fits(kind.value_type) for fits in kinds)):
            wrong.append(f"{name} is of type {kind}, but lists {what}, one per negative")
    if wrong:
        raise ValueError(f"'{path}': {'; '.join(wrong)}. Correct or remove the column.")


def _item_rows(ids: pa.ChunkedArray, name: str, catalog: Catalog, path: str | Path) -> np.ndarray:
    """(n,) item rows of the ids in a column."""
    try:
        return catalog.item_rows(ids.combine_chunks())
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"'{path}', column {name}: {error}") from error


def _item_lists(data: pa.Table, name: str, catalog: Catalog, path: str | Path) -> list[np.ndarray]:
    """Item rows of each list of ids in a column."""
    lengths = pc.fill_null(pc.list_value_length(data[name]), 0).to_numpy()
    return np.split(_item_rows(pc.list_flatten(data[name]), name, catalog, path), np.cumsum(lengths)[:-1])


def _check_lines(
    path: str | Path,
    data: pa.Table,
    histories: list[np.ndarray],
    targets: np.ndarray,
    negatives: list[np.ndarray],
    table: SidTable,
) -> None:
    """Refuse lines that cannot be trained on.

    Raises:
        ValueError: With every kind of problem.
    """
    codes = table.codes(np.arange(table.num_items))
    faults = {
        "no history": [len(items) == 0 for items in histories],
        "no negatives": [len(items) == 0 for items in negatives],
        "the target, or an item with its semantic ID, among the negatives": [
            bool((codes[items] == codes[target]).all(axis=1).any())
            for items, target in zip(negatives, targets, strict=True)
        ],
    }
    for name in (name for name in PER_NEGATIVE if name in data.column_names):
        faults[f"another number of {name} than of negatives"] = [
            len([value for value in values or () if value is not None]) != len(items)
            for values, items in zip(data[name].to_pylist(), negatives, strict=True)
        ]
    if columns.ORACLE in data.column_names:
        faults["an oracle outside [0, 1]"] = [
            not all(p is not None and 0 <= p <= 1 for p in values or ()) for values in data[columns.ORACLE].to_pylist()
        ]
    found = {what: np.flatnonzero(is_faulty) for what, is_faulty in faults.items() if any(is_faulty)}
    if found:
        listed = [f"{what} ({len(lines)}, first: {lines[:NAMED].tolist()})" for what, lines in found.items()]
        raise ValueError(f"'{path}' has lines with {'; and with '.join(listed)}. Correct or remove them.")
