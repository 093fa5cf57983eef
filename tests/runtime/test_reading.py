"""Reading files of others: whatever a library makes of a damaged file, one sentence names the file and the remedy."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from llmrec.runtime.reading import reading


def deeply_nested(path):
    json.loads("[" * 200_000)


@pytest.mark.parametrize(
    ("content", "read", "reason"),
    [
        (b"PAR1", pq.read_table, "smaller than the minimum file footer"),
        (b"hello", lambda path: json.loads(path.read_text()), "Expecting value"),
        (b"\xff", lambda path: path.read_text("utf-8"), "can't decode byte 0xff"),
        (b"", deeply_nested, "it is nested too deeply"),
        (b"", lambda path: {}["a"], "'a'"),
        (b"", lambda path: next(iter(())), "StopIteration"),
    ],
)
def test_any_error_names_the_file_and_the_remedy(content, read, reason, tmp_path):
    path = tmp_path / "a.file"
    path.write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"a.file' is not a table \(.*\); write it again\.$") as caught,
        reading(path, "a table", "write it again"),
    ):
        read(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"b' does not exist; write it\.$"), reading(tmp_path / "b", "x", "write it"):
        (tmp_path / "b").read_text()


def test_too_little_memory_is_not_the_fault_of_the_file(tmp_path):
    with pytest.raises(MemoryError), reading(tmp_path, "x", "y"):
        raise MemoryError
