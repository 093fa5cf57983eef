"""Codes that a SidTable is made of: checks of what is given, and terminal codes that make semantic IDs prefix-free.

Shapes: S SIDs, L levels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import columns
from llmrec.data.item_ids import ItemIds
from llmrec.runtime.reading import reading
from llmrec.sid.bounds import EMPTY as EMPTY
from llmrec.sid.bounds import LARGEST
from llmrec.sid.groups import buckets

LARGEST_FILE, LARGEST_RATIO = 2**30, 1000  # bytes that a file may unfold to whatever its size; else times its size


def check_codes(item_ids: ItemIds, codes: np.ndarray, rows: np.ndarray) -> None:
    """Refuse codes and item rows that do not fit one another.

    Raises:
        ValueError: If an item has no SID or is unknown, or a code is out of bounds or follows the end of a SID.
    """
    if len(codes) != len(rows):
        raise ValueError(f"{len(codes)} SIDs were given for {len(rows)} item rows.")
    if item_ids.first_repeated is not None:
        raise ValueError("item_ids of a SidTable must be unique.")
    is_owner = np.zeros(len(item_ids), bool)
    is_owner[rows[(rows >= 0) & (rows < len(item_ids))]] = True
    without = np.flatnonzero(~is_owner)
    if len(without):
        raise ValueError(f"{len(without)} items have no SID; first: '{item_ids[without[0]]}'.")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(item_ids)):
        raise ValueError(f"item rows must lie in [0, {len(item_ids)}); found {rows.min()} … {rows.max()}.")
    if codes.size and codes.max() > LARGEST:
        raise ValueError(f"a SID has the code {codes.max()}; the largest is {LARGEST}.")
    filled = codes != EMPTY
    bad = np.flatnonzero((codes < EMPTY).any(axis=1) | ~filled[:, 0] | (filled[:, 1:] & ~filled[:, :-1]).any(axis=1))
    if len(bad):
        raise ValueError(
            f"item '{item_ids[rows[bad[0]]]}' has the codes {codes[bad[0]].tolist()}; -1 may only end a SID."
        )


def make_prefix_free(codes: np.ndarray, level_sizes: list[int]) -> tuple[np.ndarray, list[int]]:
    """Give each SID that is a proper prefix of another one a terminal code, one past the codes of the next level."""
    lengths = (codes != EMPTY).sum(axis=1)
    if (lengths == codes.shape[1]).all():
        return codes, level_sizes
    order, starts, counts = buckets(codes)
    distinct = codes[order[starts]]
    # Sorted, with -1 before every code, a SID stands right before the first of those that it is a prefix of.
    goes_on = ((distinct[:-1] == distinct[1:]) | (distinct[:-1] == EMPTY)).all(axis=1)
    is_prefix = np.empty(len(codes), bool)
    is_prefix[order] = np.repeat(np.append(goes_on, False), counts)
    codes, sizes = codes.copy(), list(level_sizes)
    for level in np.flatnonzero(np.bincount(lengths[is_prefix])):
        codes[is_prefix & (lengths == level), level] = level_sizes[level]
        sizes[level] = level_sizes[level] + 1
    return codes, sizes


def read_codes(path: Path) -> tuple[pa.Table, list[str]]:
    """Read the file of a SidTable.

    Returns:
        The table, and the names of its columns of codes, in order.

    Raises:
        ValueError: If the file is absent or unreadable, or columns are absent, twice or of another type.
    """
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; `llmrec tokenize` writes it.")
    with reading(path, "a parquet file", "run `llmrec tokenize` again"):
        check_parquet(path)
        table = pq.read_table(path, partitioning=None)
    levels = [columns.code(level) for level in range(sum(n.startswith("code_") for n in table.column_names))]
    needed = [columns.ITEM_ID, *levels]
    if not levels or any(table.column_names.count(name) != 1 for name in needed):
        raise ValueError(f"'{path}' needs the columns item_id and code_0 …, once; it has {table.column_names}.")
    if not pa.types.is_string(table[columns.ITEM_ID].type) or table[columns.ITEM_ID].null_count:
        raise ValueError(f"'{path}' has item_ids that are no text, or empty. Run `llmrec tokenize` again.")
    for name in levels:
        if not pa.types.is_integer(table[name].type) or table[name].null_count:
            raise ValueError(
                f"'{path}' has {table[name].type} with {table[name].null_count} empty cells in {name}; codes are "
                "integers, and -1 beyond the end of a SID. Run `llmrec tokenize` again."
            )
    return table, levels


def check_parquet(path: str | Path) -> None:
    """Refuse a parquet file that unfolds to far more than its size, before it is read.

    Raises:
        ValueError: If its cells would take more than 1 GiB and 1,000 times its size.
    """
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    cells = 8 * metadata.num_rows * metadata.num_columns
    unfolded = max(cells, sum(group.total_byte_size for group in groups))
    if unfolded > max(LARGEST_FILE, LARGEST_RATIO * Path(path).stat().st_size):
        raise ValueError(
            f"its {metadata.num_rows:,} rows of {metadata.num_columns} columns would take {unfolded / 2**30:.1f} GiB, "
            f"far more than its {Path(path).stat().st_size:,} bytes can hold"
        )
