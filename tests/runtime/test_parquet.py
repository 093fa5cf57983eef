"""Parquet files of others: what is wrong with them is one sentence."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.runtime.parquet import parquet_table


def test_a_table_is_read_with_its_names(tmp_path):
    pq.write_table(pa.table({"item_id": ["a"], "vector": [[1.0]]}), tmp_path / "a.parquet")
    assert parquet_table(tmp_path / "a.parquet", "write it again").column_names == ["item_id", "vector"]


def test_a_name_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"item_idx": ["a"]}), path)
    path.write_bytes(path.read_bytes().replace(b"item_idx", b"item\xffidx"))
    with pytest.raises(ValueError, match=r"a\.parquet' is not a parquet file .*; write it again\.") as error:
        parquet_table(path, "write it again")
    assert not isinstance(error.value, UnicodeDecodeError)
