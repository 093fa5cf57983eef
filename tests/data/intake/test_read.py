"""Any CSV or parquet file: equal results from both, and one clear error for every kind of bad file."""

from __future__ import annotations

import lzma
import re

import polars as pl
import pytest

from llmrec.data.intake.read import read_tables

LOG = "user_id,item_id,timestamp\nu1,01,3\nu1,02,1\nu2,01,2\n"
ITEMS = "item_id,title,brand\n01,Tea,Acme\n02,,\n03,Jam,Acme\n"


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def test_csv_with_items(put):
    dataset = read_tables(put("log.csv", LOG), put("items.csv.xz", lzma.compress(ITEMS.encode())))
    assert dataset.interactions.rows() == [("u1", "01", 3, 1.0), ("u1", "02", 1, 1.0), ("u2", "01", 2, 1.0)]
    assert dataset.items.rows() == [
        ("01", "Tea", "Acme", "Tea. Acme"),
        ("02", None, None, ""),
        ("03", "Jam", "Acme", "Jam. Acme"),
    ]
    assert not dataset.order_only


def test_parquet_equals_csv(put, tmp_path):
    for name, text in (("log", LOG), ("items", ITEMS)):
        pl.read_csv(text.encode(), infer_schema=False).write_parquet(tmp_path / f"{name}.parquet")
    from_csv = read_tables(put("log.csv", LOG), put("items.csv", ITEMS))
    from_parquet = read_tables(tmp_path / "log.parquet", tmp_path / "items.parquet")
    assert from_csv.items.equals(from_parquet.items) and from_csv.interactions.equals(from_parquet.interactions)


def test_without_items_titles_are_unknown(put):
    items = read_tables(put("log.csv", LOG)).items
    assert items.rows() == [("01", None, ""), ("02", None, "")]


def test_named_columns_weight_and_own_text(put):
    log = put("log.csv", "who,sku,user_id,when,weight\nann,1,x,2012-04-03,2.5\n")
    items = put("items.csv", "sku,name,text,lat,lon\n1,Tea,a cup,40.5,\n")
    names = {"user_column": "who", "item_column": "sku", "timestamp_column": "when", "title_column": "name"}
    dataset = read_tables(log, items, **names)
    assert dataset.interactions.rows() == [("ann", "1", 1_333_411_200.0, 2.5)]
    assert dataset.items.rows() == [("1", "Tea", "a cup", 40.5, None)]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (("5", "7"), [5, 7]),
        (("5", "7.5"), [5.0, 7.5]),
        (("2012-04-03 14:04", "2012-04-03 14:05"), [1_333_461_840.0, 1_333_461_900.0]),
        (("2012-04-03T14:04:00Z", "2012-04-03T14:04:01Z"), [1_333_461_840.0, 1_333_461_841.0]),
        (("2012-04-03 14:04:00.25", "2012-04-03 14:04:00.5"), [1_333_461_840.25, 1_333_461_840.5]),
    ],
)
def test_times(put, times, seconds):
    log = read_tables(put("log.csv", "user_id,item_id,timestamp\n" + "".join(f"u,i,{time}\n" for time in times)))
    assert log.interactions["timestamp"].to_list() == seconds


HEADER = "user_id,item_id,timestamp\n"
BAD_LOGS = {
    "missing column": ("who,item_id,timestamp\nu,01,1\n", r"lacks the columns 'user_id' \(--user-column\); it has"),
    "no rows": (HEADER, "has no rows"),
    "empty file": ("", "is empty"),
    "not UTF-8": (HEADER.encode() + b"u\xe9,01,1\n", "not UTF-8: line 2.*iconv"),
    "empty user": (HEADER + "u,01,1\n,01,2\n", "1 row has an empty user_id, first at line 3"),
    "empty item": (HEADER + "u,,1\n", "1 row has an empty item_id, first at line 2"),
    "unknown item": (HEADER + "u,01,1\nu,99,2\n", r"1 row names an item .*items.csv lacks, first at line 3 \('99'\)"),
    "word as time": (HEADER + "u,01,1\nu,02,soon\n", r"no readable timestamp, first at line 3 \('soon'\)"),
    "no time": (HEADER + "u,01,\n", "no readable timestamp, first at line 2"),
    "infinite time": (HEADER + "u,01,1\nu,01,inf\n", "no readable timestamp, first at line 3"),
    "ambiguous date": (HEADER + "u,01,04/03/2012\n", "ISO date"),
    "impossible date": (HEADER + "u,01,2012-04-03\nu,01,2012-13-03\n", r"line 3 \('2012-13-03'\)"),
    "bad weight": ("user_id,item_id,timestamp,weight\nu,01,1,x\n", r"weight that is no number, first at line 2"),
    "short line": (HEADER + "u,01,1\n\nu,02\n", "line 4 has 2 cells, but there are 3 columns; was it cut"),
    "short line among quotes": (HEADER + 'u,01,1\n"u","02"\nu,02,2\n', "line 3 has 2 cells, but there are 3 columns"),
    "short line without a needed cell": (
        "user_id,item_id,timestamp,device\nu,01,1,tv\nu,02,2\n", "line 3 has 3 cells, but there are 4 columns"),
    "short line after a cell of two lines": (
        "user_id,item_id,timestamp,note\nu,01,1,\"a\nb,c\"\nu,02,2\n", "line 4 has 3 cells"),
    "carriage return in a cell": (HEADER + "u,01,1\nu\r,02,2\nv,01,3\n", "line 3 has a carriage return within a cell"),
    "ragged line": (HEADER + "u,01,1\nu,01,2,3,4\n", "line 3 has 5 cells, but there are 3 columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LOGS)
def test_bad_log(put, case):
    content, message = BAD_LOGS[case]
    with pytest.raises(ValueError, match=message) as error:
        read_tables(put("log.csv", content), put("items.csv", ITEMS))
    assert "log.csv" in str(error.value)


BAD_ITEMS = {
    "repeated id": ("item_id,title\n01,a\n02,b\n01,c\n", r"1 row repeats an item_id, first at line 4 \('01'\)"),
    "empty id": ("item_id,title\n01,a\n02,b\n,c\n", "1 row has an empty item_id, first at line 4"),
    "no title column": ("item_id,label\n01,a\n", r"lacks the columns 'title' \(--title-column\)"),
    "bad latitude": ("item_id,title,lat\n01,a,1\n02,b,north\n", r"lat that is no number, first at line 3 \('north'\)"),
    "a cell of two lines": ('item_id,title\n01,"a\nb"\n02,b\n01,c\n', "first at line 5"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_bad_items(put, case):
    content, message = BAD_ITEMS[case]
    with pytest.raises(ValueError, match=message) as error:
        read_tables(put("log.csv", LOG), put("items.csv", content))
    assert "items.csv" in str(error.value)


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "parts"])
def test_a_separator_that_no_file_has_is_refused(put, tmp_path, name):
    """It was ignored. One file of two may have it."""
    frame = pl.read_csv(LOG.encode(), infer_schema=False)
    path = tmp_path / name
    if name == "parts":
        path.mkdir()
        frame.write_parquet(path / "part-0.parquet")
    elif name == "log.jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    with pytest.raises(ValueError, match=rf"--separator is ';', .*'{path}' is of another kind, so leave it out"):
        read_tables(path, separator=";")
    with pytest.raises(ValueError, match=f"'{path}' and '{path}' are of another kind"):
        read_tables(
            path,
            path,
            separator=";",
            item_column="timestamp",
            item_file_column="timestamp",
            timestamp_column="item_id",
            title_column="user_id",
        )
    items = put("items.csv", ITEMS.replace(",", ";"))
    assert read_tables(path, items, separator=";").items.height == 3


def test_a_carriage_return_within_a_line_is_part_of_a_cell_or_refused(put):
    with pytest.raises(ValueError, match=r"log.csv"):
        read_tables(put("log.csv", "user_id,item_id,timestamp\nu\rv,01,1\nu,02,2\r\n,,\n"))


def test_cells_of_several_lines_are_no_short_lines(put):
    text = 'user_id,item_id,timestamp,note\nu,01,1,"a\n\nb"\n"u",02,2,"x ""y"", z"\nu,02,3,\n'
    log = read_tables(put("log.csv", text)).interactions
    assert log["item_id"].to_list() == ["01", "02", "02"] and log["timestamp"].to_list() == [1, 2, 3]


def test_every_problem_at_once(put):
    items = put("items.csv", "item_id,title\n01,a\n01,b\n")
    log = put("log.csv", "user_id,item_id,timestamp\n,01,1\nu,77,soon\n")
    with pytest.raises(ValueError) as error:
        read_tables(log, items)
    found = str(error.value).splitlines()
    assert len(found) == 4
    for line, word in zip(found, ("repeat", "empty user_id", "timestamp", "lacks"), strict=True):
        assert word in line


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"user_id": [1.0], "item_id": ["a"], "timestamp": [1]}, "user_id holds Float64; ids are text or integers"),
        ({"user_id": [1], "item_id": ["a"], "timestamp": [[1]]}, r"timestamp holds List"),
        ({"user_id": [1, None], "item_id": ["a", "b"], "timestamp": [1, 2]}, "empty user_id, first at row 2"),
    ],
)
def test_bad_parquet(tmp_path, frame, message):
    pl.DataFrame(frame).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path / "log.parquet")


def test_bad_paths(put, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_tables(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"not a .parquet file although its name says so"):
        read_tables(put("log.parquet", LOG))
    with pytest.raises(ValueError, match="name one column twice"):
        read_tables(put("log.csv", LOG), user_column="item_id")


@pytest.mark.parametrize(
    ("written", "listed", "said"),
    [
        ("p3 ", "p3", "'p3 ' looks like 'p3' there, equal but for blanks"),
        ("3.0", "3", "'3.0' looks like '3' there, the same number in another form"),
        ("0104", "104", "'0104' looks like '104' there, the same number"),
        ("B00X", "b00x", "'B00X' looks like 'b00x' there, equal but for upper and lower case"),
    ],
)
def test_an_unknown_item_that_looks_like_a_known_one_is_told_so(tmp_path, written, listed, said):
    (tmp_path / "items.csv").write_text(f"item_id,title\n{listed},Saw\nother,Jaws\n")
    (tmp_path / "log.csv").write_text(f'user_id,item_id,timestamp\nu,"{written}",1\nu,other,2\n')
    with pytest.raises(ValueError, match=re.escape(said) + ".*Write ids in one form in both files"):
        read_tables(tmp_path / "log.csv", tmp_path / "items.csv")
