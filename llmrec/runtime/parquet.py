"""Parquet files of others, read with the names of their columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.runtime.reading import reading


def parquet_table(path: str | Path, remedy: str) -> pa.Table:
    """Read a parquet file, and its column names, which pyarrow decodes only when they are asked for.

    Args:
        path: The file.
        remedy: Next step of the user, as the end of a sentence.

    Raises:
        ValueError: If it cannot be read, or a name is no text.
    """
    with reading(path, "a parquet file", remedy):
        table = pq.read_table(path, partitioning=None)
        return table.rename_columns(table.column_names)
