"""Parquet files and directories of parts: read as one table, each problem with its part."""

from __future__ import annotations

import gzip
import io

import polars as pl
import pytest

from llmrec.data.intake.files.opened import open_rows
from llmrec.data.intake.read import read_tables

LOG = pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
TABLE = [("u", "1", 1, 1.0), ("u", "2", 2, 1.0), ("v", "3", 3, 1.0)]


def packed(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def put(tmp_path):
    def write(files: dict[str, str | bytes]):
        for name, content in files.items():
            path = tmp_path / "log" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "log"

    return write


@pytest.mark.parametrize(
    "name", ["log.parquet", "LOG.PARQUET", "log.pq", "log.parq", "part-0.snappy.parquet", "log.parquet.gz"]
)
def test_endings_of_parquet(put, name):
    content = gzip.compress(packed(LOG)) if name.endswith(".gz") else packed(LOG)
    assert read_tables(put({name: content}) / name).interactions.rows() == TABLE


HEADER = "user_id,item_id,timestamp\n"
PARTS = {
    "parquet of Spark": {
        "part-0.snappy.parquet": packed(LOG[:2]),
        "part-1.snappy.parquet": packed(LOG[2:]),
        "_SUCCESS": "",
        ".part-0.crc": "x",
    },
    "CSV": {
        "part-0.csv": LOG[:2].write_csv(),
        "part-1.csv": LOG[2:].write_csv(),
        "part-2.csv": HEADER,
        "part-3.csv": "",
    },
    "CSV in gz": {
        "a.csv.gz": gzip.compress(LOG[:2].write_csv().encode()),
        "b.csv.gz": gzip.compress(LOG[2:].write_csv().encode()),
    },
    "JSON": {"a.json": LOG[:1].write_ndjson(), "b.json": LOG[1:].write_ndjson(), "_committed_1": "{}"},
    "folders": {"2020/1/a.parquet": packed(LOG[:2]), "2020/2/a.parquet": packed(LOG[2:]), "_metadata/x.parquet": b"no"},
    "columns in folders": {
        f"user_id={row['user_id']}/item_id={row['item_id']}/a.csv": f"timestamp\n{row['timestamp']}\n"
        for row in LOG.rows(named=True)
    },
    "other order and more columns": {
        "a.parquet": packed(LOG[:2]),
        "b.parquet": packed(LOG[2:].select("timestamp", "item_id", "user_id", x=1)),
    },
    "other width": {"a.parquet": packed(LOG[:2].cast({"item_id": pl.Int16})), "b.parquet": packed(LOG[2:])},
}


@pytest.mark.parametrize("case", PARTS)
def test_parts(put, case):
    dataset = read_tables(put(PARTS[case]))
    assert dataset.interactions.rows() == TABLE
    assert "parts." in dataset.notes[0]


def test_values_of_folders_are_text_unescaped_and_null_by_the_name_of_hive(put):
    files = {"city=K%C3%B6ln%2FS/a.csv": "x\n1\n2\n", "city=__HIVE_DEFAULT_PARTITION__/a.csv": "x\n3\n"}
    rows = open_rows(put(files))
    assert rows.read(["city"]).rows() == [("Köln/S",), ("Köln/S",), (None,)]
    assert rows.read(["x", "city"], 2).rows() == [("1", "Köln/S"), ("2", "Köln/S")]


REFUSED = {
    "empty": ({"_SUCCESS": ""}, "has no file"),
    "several kinds": ({"a.csv": "x\n1\n", "b.parquet": packed(LOG)}, r"several kinds \(.csv, .parquet\)"),
    "Delta": ({"_delta_log/0.json": "{}", "a.parquet": packed(LOG)}, "a Delta table, which has removed rows"),
    "Iceberg": ({"metadata/v1.metadata.json": "{}", "data/a.parquet": packed(LOG)}, "an? Iceberg table"),
    "a damaged part": (
        {"a.parquet": packed(LOG), "b.parquet": packed(LOG)[:99]},
        r"b.parquet' is not a readable table",
    ),
    "a bad row": (
        {"a.csv": HEADER + "u,1,1\nu,2,2\n", "b.csv": HEADER + "u,3,3\nu,4,soon\n"},
        r"first at line 3 of b.csv \('soon'\)",
    ),
    "another table": ({"a.csv": HEADER + "u,1,1\n", "b.csv": "x,y\n1,2\n"}, "empty user_id, first at line 2 of b.csv"),
    "types that differ": (
        {"a.parquet": packed(LOG), "b.parquet": packed(LOG.with_columns(user_id=pl.lit([1])))},
        "different types in one column",
    ),
    "no rows": ({"a.csv": HEADER, "b.csv": HEADER}, "has no rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(put, case):
    files, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        read_tables(put(files))


def test_every_cut_and_damage_of_a_parquet_file_is_one_message(put):
    content = packed(LOG)
    for place in range(0, len(content), 13):
        for damaged in (content[:place], content[:place] + b"\xff\xff\xff" + content[place + 3 :]):
            path = put({"log.parquet": damaged}) / "log.parquet"
            try:
                dataset = read_tables(path)
            except ValueError as error:
                assert "log.parquet" in str(error)
            else:  # a byte that says nothing about the rows, such as the name of the writer
                assert dataset.interactions.height == 3


def test_ids_in_other_types_of_parquet_keep_every_digit(put):
    ids = {
        "big": pl.Series([2**63, 2**64 - 1], dtype=pl.UInt64),
        "category": pl.Series(["01", "1"], dtype=pl.Categorical),
        "bytes": pl.Series([b"01", b"1"]),
    }
    for name, column in ids.items():
        frame = pl.DataFrame({"user_id": column, "item_id": ["a", "b"], "timestamp": [1, 2]})
        path = put({f"{name}.parquet": packed(frame)}) / f"{name}.parquet"
        assert read_tables(path).interactions["user_id"].to_list() == column.cast(pl.String).to_list()
    frame = pl.DataFrame({"user_id": [b"\xff", b"1"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    with pytest.raises(ValueError, match="user_id holds Binary"):
        read_tables(put({"bad.parquet": packed(frame)}) / "bad.parquet")


FAR = {
    "a day that no Datetime holds": pl.Series([0, 2**31 - 1, 5], dtype=pl.Int32).cast(pl.Date),
    "a year beyond 9999": pl.Series([0, 2**62, 5]).cast(pl.Datetime("us")),
    "a year before 1": pl.Series([0, -(2**62), 5]).cast(pl.Datetime("ms")),
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("name", ["released", "year", "title"])
def test_dates_that_polars_panics_on_are_named(put, case, name):
    items = pl.DataFrame({"item_id": ["1", "2", "3"], "title": ["a", "b", "c"]}).with_columns(FAR[case].alias(name))
    folder = put({"log.parquet": packed(LOG), "items.parquet": packed(items)})
    with pytest.raises(
        ValueError, match=rf"items.parquet: 1 row has a {name} outside the years 1 to 9999, first at row 2"
    ):
        read_tables(folder / "log.parquet", folder / "items.parquet")
