"""The three files of a catalogue, as `prepare` writes them; docs/formats.md describes them, and Catalog reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.columns import HISTORY, ITEM_ID, SPLIT, TARGET, TIMESTAMP, USER_ID, WEIGHT
from llmrec.data.split import with_texts

WRITTEN_AT_A_TIME = 200_000  # examples


def write(directory: Path, items: pl.DataFrame, interactions: pl.DataFrame, rows: pl.DataFrame) -> None:
    """Write items.parquet, interactions.parquet and split.parquet."""
    items.write_parquet(directory / "items.parquet")
    log = with_texts(interactions.select(USER_ID, ITEM_ID, TIMESTAMP, WEIGHT))
    log.write_parquet(directory / "interactions.parquet")
    write_examples(directory / "split.parquet", rows)


def write_examples(path: Path, rows: pl.DataFrame) -> None:
    """Write the examples in slices, with each slice's histories as one column of ids.

    polars copies the ids of all histories before it writes a part of them. For 10^7 ids of 36 characters that took
    1.8 GB more, and more than twice the CPU time.
    """
    with pq.ParquetWriter(path, examples_table(rows[:1]).schema, compression="zstd") as writer:
        for some in rows.iter_slices(WRITTEN_AT_A_TIME):
            writer.write_table(examples_table(some))


def examples_table(rows: pl.DataFrame) -> pa.Table:
    """The columns of split.parquet, with the histories as offsets into one column of ids."""
    history = rows[HISTORY]
    ends = np.cumsum(history.list.len().to_numpy(), dtype=np.int64)
    ids = history.explode().drop_nulls().cast(pl.String).to_arrow()  # an empty history explodes to null
    table = {name: rows[name].cast(pl.String).to_arrow() for name in (USER_ID, SPLIT, TARGET)}
    table[HISTORY] = pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), ids)
    return pa.table(table).select([USER_ID, SPLIT, HISTORY, TARGET])
