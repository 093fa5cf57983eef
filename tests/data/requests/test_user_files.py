"""Parquet files of users, read in parts: every user once, whatever the files, row groups and batches."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.requests import user_files
from llmrec.data.requests.user_files import UserFiles

TEXTS = pa.list_(pa.string())


def users_from(start: int, stop: int) -> pa.Table:
    histories = pa.array([["a"] * (user % 3) for user in range(start, stop)], TEXTS)
    return pa.table({"user": pa.array(range(start, stop), pa.int64()), "history": histories})


@pytest.mark.parametrize("seed", range(40))
def test_parts_hold_their_users(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(user_files, "BATCH", 7)
    rng, count = random.Random(seed), 0
    for number in range(rng.randint(1, 4)):
        size = rng.randint(number == 0, 60)
        table = users_from(count, count + size)
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=rng.randint(1, 40))
        count += size
    files = UserFiles.find(tmp_path)
    assert files.num_users == count
    size = rng.randint(1, 20)
    parts = [range(at, min(at + size, count)) for at in range(0, count, size) if rng.random() < 0.6]
    assert [(part, table["user"].to_pylist()) for part, table in files.read(iter(parts))] == [
        (part, list(part)) for part in parts
    ]
    for user in rng.sample(range(count), min(count, 5)):
        path, row = files.place(user).rsplit(", row ", 1)
        assert pq.read_table(path)["user"][int(row) - 1].as_py() == user


def test_row_groups_without_a_user_of_the_parts_are_not_read(tmp_path, monkeypatch):
    pq.write_table(users_from(0, 100), tmp_path / "users.parquet", row_group_size=10)
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def recording(self, size, row_groups):
        read.extend(row_groups)
        return iter_batches(self, size, row_groups=row_groups)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recording)
    for _, table in UserFiles.find(tmp_path / "users.parquet").read([range(5, 8), range(45, 52), range(95, 100)]):
        assert table.num_rows
    assert read == [0, 4, 5, 9]


def damaged(path) -> None:
    content = bytearray(path.read_bytes())
    content[8:40] = bytes(32)
    path.write_bytes(content)


def not_utf8(path) -> None:
    entries = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"history": pa.ListArray.from_arrays([0, 1], entries)}), path, use_dictionary=False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is a directory without a .parquet file"),
        ({"a.jsonl": lambda path: path.write_text('{"history": []}')}, "is a directory without a .parquet file"),
        ({"a.parquet": lambda path: path.write_text("no")}, "is not a .parquet file although its name says so"),
        ({"a.parquet": lambda path: path.write_bytes(b"PAR1" + bytes(40))}, "is not a parquet file"),
        ({"a.parquet": lambda path: pq.write_table(users_from(0, 0), path)}, "no request in it"),
        ({"a.parquet": lambda path: pq.write_table(pa.table({"n": [1]}), path)}, 'needs {"history": [...]}'),
        ({"a.parquet": lambda path: pq.write_table(users_from(0, 2), path),
          "b.parquet": lambda path: pq.write_table(pa.table({"history": [["a"]]}), path)}, "has no column 'user' as"),
        ({"a.parquet": lambda path: pq.write_table(pa.table({"history": [["a"]]}), path),
          "b.parquet": lambda path: pq.write_table(users_from(0, 2), path)}, "has a column 'user', or another order"),
        ({"a.parquet": lambda path: pq.write_table(pa.table({"history": [["a"]]}), path),
          "b.parquet": lambda path: pq.write_table(pa.table({"history": [[1]]}), path)},
         "has 'history' of type list<element: int64>, not list<element: string> as"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_files_that_hold_no_requests_are_refused(tmp_path, files, message):
    for name, write in files.items():
        write(tmp_path / name)
    with pytest.raises(ValueError) as error:
        UserFiles.find(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "users.jsonl").write_text('{"history": []}')
    with pytest.raises(ValueError, match=r"users.jsonl' is no .parquet file; write it as parquet, or give it as --inp"):
        UserFiles.find(tmp_path / "users.jsonl")
    with pytest.raises(ValueError, match="does not exist; give a parquet file"):
        UserFiles.find(tmp_path / "users.parquet")


@pytest.mark.parametrize("damage", [damaged, not_utf8], ids=["damaged page", "no UTF-8"])
def test_content_that_cannot_be_read_is_one_sentence(tmp_path, damage):
    path = tmp_path / "users.parquet"
    pq.write_table(users_from(0, 50), path)
    damage(path)
    files = UserFiles.find(path)
    with pytest.raises(ValueError, match=r"users.parquet' is not a parquet file \(.*\); write it again"):
        list(files.read([range(files.num_users)]))
