"""Text as people have it: any separator, compression, encoding and line end give equal rows, or one clear message."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmrec.data.intake.files.opened import open_rows

NAMES = ["user_id", "item_id", "timestamp"]
ROWS = [("c0", "01", "0"), ("c0", "02", "1"), ("ü", "01", "10")]
TEXT = "user_id,item_id,timestamp\nc0,01,0\nc0,02,1\nü,01,10\n"


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(path: Path, separator: str | None = None) -> list[tuple]:
    rows = open_rows(path, separator)
    return rows.read(rows.names).rows()


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::", " "])
@pytest.mark.parametrize("name", ["log.csv", "log.txt", "LOG.DAT", "log"])
def test_separators_are_found_and_said(put, separator, name):
    rows = open_rows(put(name, TEXT.replace(",", separator)))
    assert rows.names == NAMES and rows.read(NAMES).rows() == ROWS
    assert len(rows.notes) == (separator != ",")


@pytest.mark.parametrize(("separator", "typed"), [("*", "*"), ("||", "||"), ("¦", "¦"), ("\t", r"\t"), ("\t", "tab")])
def test_a_given_separator(put, separator, typed):
    assert read(put("log.csv", TEXT.replace(",", separator)), typed) == ROWS


def test_the_separator_that_cuts_all_lines_alike_wins(put):
    content = "item_id;title, as sold;price\n1;Tea, green;1,5\n2;Jam;2,5\n3;Rice, brown, long;3\n"
    assert open_rows(put("items.csv", content)).names == ["item_id", "title, as sold", "price"]


def test_separator_line_of_excel(put):
    assert read(put("log.csv", "sep=;\r\n" + TEXT.replace(",", ";").replace("\n", "\r\n"))) == ROWS


PACKED = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed(put, ending):
    packed = PACKED[ending](TEXT.encode() * 1)
    assert read(put("log.csv" + ending, packed)) == ROWS
    assert read(put("LOG.CSV" + ending.upper(), packed)) == ROWS


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_and_cut(put, ending):
    packed = PACKED[ending](TEXT.encode() * 100)
    for length in range(7, len(packed), 9):
        with pytest.raises(ValueError, match=rf"a cut or damaged {ending} file .*get it again"):
            read(put("log.csv" + ending, packed[:length]))


ENCODED = {
    "byte-order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, big end first, semicolons": b"\xfe\xff" + TEXT.replace(",", ";").encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "Windows": TEXT.replace("\n", "\r\n").encode(),
    "old Mac": TEXT.replace("\n", "\r").encode(),
    "line ends written twice": TEXT.replace("\n", "\r\r\n").encode(),
    "no last line end": TEXT.rstrip("\n").encode(),
    "empty lines at the end": (TEXT + "\n\r\n \n").encode(),
    "blanks around names": TEXT.replace(",item_id", " , item_id\t").encode(),
    "quoted": TEXT.replace("c0", '"c0"').replace("item_id", '"item_id"').encode(),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_encodings_and_line_ends(put, kind):
    rows = open_rows(put("log.csv", ENCODED[kind]))
    assert rows.names == NAMES and rows.read(NAMES).rows() == ROWS


LATIN = TEXT.encode("latin1")
REFUSED = {
    "empty": ("log.csv", b"", "is empty"),
    "latin-1": ("log.csv", LATIN, r"line 4, byte 42.*`iconv -f windows-1252 -t utf-8 log.csv > utf8-log.csv`"),
    "latin-1 in gz": ("log.csv.gz", gzip.compress(LATIN), r"line 4.*Unpack it, then convert.*8 log.csv > utf8-log.csv"),
    "UTF-16 without a mark": ("log.csv", TEXT.encode("utf-16-le"), r"iconv -f utf-16le .* > utf8-log.csv"),
    "UTF-16, other end first": ("log.csv", TEXT.encode("utf-16-be"), r"iconv -f utf-16be"),
    "UTF-16, cut": ("log.csv", TEXT.encode("utf-16")[:-1], "cut or damaged: its byte .* is no UTF-16"),
    "cut within a character": ("log.csv", TEXT[:43].encode()[:-1], "ends within a character, so it was cut"),
    "binary": ("log.csv", TEXT.encode() + b"\0\1", "zero bytes, so it is no text"),
    "not gz": ("log.csv.gz", TEXT.encode(), "is not a .gz file although its name says so"),
    "not parquet": ("log.parquet", TEXT.encode(), "is not a .parquet file although its name says so"),
    "gz without the name": ("log.csv", gzip.compress(TEXT.encode()), "let its name end in .gz"),
    "parquet without the name": ("log.csv", b"PAR1....PAR1", "let its name end in .parquet"),
    "Excel": ("log.xlsx", b"PK\3\4", "an Excel file; save it as 'CSV UTF-8'"),
    "Excel as CSV": ("log.csv", b"PK\3\4", "an Excel file or a zip archive"),
    "pickle": ("log.pkl", b"\x80\4", "a pickle, which can run code"),
    "no header": ("log.csv", b"196,242,881250949\n186,302,891717742\n", "no header, but the row 196, 242, 881250949"),
    "a name twice": ("log.csv", b"user_id,item_id, user_id\na,b,c\n", "two columns 'user_id'"),
    "long line": ("log.csv", (TEXT + "c1,Tea, green,3\n").encode(), "line 5 has 4 cells, but there are 3 columns"),
    "long line among quotes": ("log.csv", (TEXT + '"c1",a,3,9\n').encode(), "line 5 has 4 cells"),
    "cut line": ("log.csv", (TEXT + "c1,0").encode(), "line 5 has 2 cells.*was it cut"),
    "long row of two lines": ("log.csv", (TEXT + '"a\nb",1,2\n"a,b",1,2,3\n').encode(), "line 7 has 4 cells"),
    "open quote": ("log.csv", (TEXT + '"c1,"0,1",3\nc1,02,3\n').encode(), "double quote in the cells from line 5 on"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(put, case):
    name, content, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        read(put(name, content))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_header_in_another_encoding_is_refused_whatever_is_read(put):
    with pytest.raises(ValueError, match="is not UTF-8: line 1, byte 18"):
        open_rows(put("log.csv", "user_id,item_id,größe\nc0,01,x\n".encode("latin1")))


def test_quotes_that_enclose_no_cell_are_characters(put):
    rows = open_rows(put("log.tsv", 'artist\titem_id\nDeep "Dish\t1\n"Heroes\t2\n"Low"\t3\n"12"" mix"\t4\n'))
    cells = [cell for cell, _ in rows.read(rows.names).rows()]
    assert cells == ['Deep "Dish', '"Heroes', "Low", '12" mix']
    assert "in 2 lines enclose no cell" in rows.notes[0]


def test_cells_of_several_lines_and_the_lines_they_begin_in(put):
    rows = open_rows(put("items.csv", 'item_id,title\n1,"Tea,\n\ngreen ""x"""\n\n2,Jam\n'))
    assert rows.read(rows.names).rows() == [("1", 'Tea,\n\ngreen "x"'), ("2", "Jam")]
    assert [rows.place(row, 2) for row in range(2)] == ["line 2", "line 6"]


def test_empty_lines_do_not_shift_the_lines_of_rows(put):
    rows = open_rows(put("log.csv", "a,b\n\n1,2\n\n\n3,4\n"))
    assert rows.read(["b"]).rows() == [("2",), ("4",)]
    assert [rows.place(row, 2) for row in range(2)] == ["line 3", "line 6"]
    assert rows.notes == [f"{rows.path}: empty lines between others are left out."]


def test_a_name_that_is_a_pattern_is_one_file(put):
    put("log1.csv", TEXT.replace("c0", "other"))
    assert read(put("log[1]*.csv", TEXT)) == ROWS


def test_the_index_of_pandas_is_not_read(put):
    assert open_rows(put("log.csv", ",user_id,item_id\n0,a,b\n1,a,c\n")).names == ["user_id", "item_id"]


cells = st.text(alphabet='ab1 é,";|\t\n', max_size=5)
tables = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5)
)
PROPERTY = settings(
    derandomize=True, max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@PROPERTY
@given(tables, st.sampled_from(",;|\t"), st.booleans())
def test_cells_written_by_csv_are_read_back(put, table, separator, windows):
    assume(all(any(map(str.strip, row)) for row in table))
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, lineterminator="\r\n" if windows else "\n")
    writer.writerows([[f"name{place}" for place in range(len(table[0]))], *table])
    assert read(put("log.csv", written.getvalue()), separator) == [tuple(cell or None for cell in row) for row in table]


@PROPERTY
@given(st.text(alphabet='a ",\n', max_size=24))
def test_broken_quotes_are_refused_or_read_as_csv_reads_them(put, body):
    rows = open_rows(put("log.csv", "x,y\n" + body))
    try:
        found = rows.read(["x", "y"])
    except ValueError as error:
        assert "log.csv: line " in str(error) or "double quote in the cells from line" in str(error)
        return
    if rows.notes and "enclose no cell" in rows.notes[0]:
        assert found.height <= body.count("\n") + 1
        return
    expected = [row for row in csv.reader(io.StringIO(body, newline="\n")) if len(row) > 1]
    given = [row for row in found.with_columns(pl.all().fill_null("")).rows() if any(row)]
    assert given == [tuple(row) for row in expected if any(row)]
