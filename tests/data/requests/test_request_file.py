"""Files of requests and of answers: JSON lines and parquet, as people have them."""

from __future__ import annotations

import datetime
import gzip
import json

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data.requests.answer_file import check_place, write_answers
from llmrec.data.requests.request_file import UserRequest, read_requests

BOM = b"\xef\xbb\xbf"
TWO = b'{"user_id": "c1", "history": ["a", "b"]}\n{"history": [], "exclude": null, "allow": ["b"], "n": 1.5}\n'


def written(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("u.jsonl", TWO),
        ("u.jsonl", BOM + TWO),
        ("u.txt", TWO.replace(b"\n", b"\r\n\r\n")),
        ("u.json", TWO.rstrip(b"\n")),
        ("u.jsonl", TWO.decode().encode("utf-16")),
        ("u.jsonl.gz", gzip.compress(BOM + TWO)),
    ],
    ids=["plain", "byte-order mark", "Windows line ends and empty lines", "no last line end", "UTF-16", "gzip"],
)
def test_json_lines_are_read_however_they_were_saved(tmp_path, name, content):
    one, two = read_requests(written(tmp_path / name, content))
    assert (one.history, one.exclude, one.allow, one.carried) == (["a", "b"], [], None, {"user_id": "c1"})
    assert (two.history, two.exclude, two.allow, two.carried) == ([], [], ["b"], {"n": 1.5})
    assert one.place.endswith("line 1")


def test_numbers_that_stand_for_ids_are_read_as_text(tmp_path):
    (one,) = read_requests(written(tmp_path / "u.jsonl", b'{"history": [7, 104257], "user_id": 5}'))
    assert one.history == ["7", "104257"] and one.carried == {"user_id": 5}


def test_letters_of_all_kinds_and_separators_within_text_are_kept(tmp_path):
    ids = ["東京\u2028物語", "naïve", "\u202eabc", "a\nb", "🍏"]
    (one,) = read_requests(written(tmp_path / "u.jsonl", json.dumps({"history": ids}, ensure_ascii=False).encode()))
    assert one.history == ids


def test_parquet_of_any_writer_is_read(tmp_path):
    columns = {
        "user_id": [3, 4],
        "history": [["a"], None],
        "allow": [None, ["b"]],
        "day": [datetime.date(2024, 1, 2)] * 2,
    }
    pd.DataFrame(columns).to_parquet(tmp_path / "pandas.parquet")
    pl.DataFrame(columns).write_parquet(tmp_path / "polars.parquet")
    pq.write_table(pa.table(columns), tmp_path / "arrow.PARQUET")
    for name in ("pandas.parquet", "polars.parquet", "arrow.PARQUET"):
        one, two = read_requests(tmp_path / name)
        assert (one.history, one.allow, two.history, two.allow) == (["a"], None, [], ["b"])
        assert one.carried == {"user_id": 3, "day": datetime.date(2024, 1, 2)} and two.place.endswith("row 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "no request in it"),
        (b'{"history": ["a"]}\n{"history": "a"}', """line 2: "history" must be a list of item_ids; it is 'a'"""),
        (b'{"history": [["a"]]}', "must be a list of item_ids, which are text; it has"),
        (b'{"history": [true]}', "which are text; it has True"),
        (b'{"history": [1.0]}', "which are text; it has 1.0"),
        (b'{"history": ["\\ud800"]}', "half a character"),
        (b'{"user_id": "c1"}', 'needs {"history"'),
        (b'["a"]', 'needs {"history"'),
        (b"history\na\n", "line 1: not JSON"),
        (b'{"history": ["a"], "n": NaN}', "NaN is no JSON number"),
        (b'{"history": ["a"], "exlude": ["b"]}', 'has "exlude"; write "exclude" if that is meant'),
        (b'{"history": ["a"], "Allowed": ["b"]}', 'has "Allowed"; write "allow" if that is meant'),
        (b'{"history": ["a"], "exclude_items": ["b"]}', 'has "exclude_items"; write "exclude"'),
        (b'{"history": ["a"], "items": ["b"]}', 'has "items", a key of the answers'),
        (b"[" * 5000, "thousand deep"),
        (b'{"history": [' + b"9" * 5000 + b"]}", "line 1: Exceeds the limit"),
        (b'{"history": ["\xff"]}', "is not UTF-8"),
        (b"{}\n" * 13, "3 more such lines"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused_with_their_line(tmp_path, content, message):
    with pytest.raises(ValueError) as caught:
        read_requests(written(tmp_path / "u.jsonl", content))
    assert message in str(caught.value) and "u.jsonl" in str(caught.value) and "\n" not in str(caught.value)


LINES = b"\n".join(
    json.dumps(request, ensure_ascii=False).encode()
    for request in (
        {"user_id": "c1", "history": ["a", "b", "\u6771\u4eac"]},
        {"user_id": 2, "history": [], "exclude": ["b"], "allow": None, "note": {"x": [1.5, None, "\U0001f34f"]}},
        {"history": [104257, "c"], "allow": ["a", "c"]},
    )
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(LINES) - 1), cut=st.integers(0, 6), put=st.binary(max_size=4))
def test_one_damaged_place_is_read_or_refused_with_the_file(tmp_path, place, cut, put):
    """Whatever stands there: lists of text, the lines that are whole, or one sentence."""
    path = written(tmp_path / "u.jsonl", LINES[:place] + put + LINES[place + cut :])
    try:
        requests = read_requests(path)
    except ValueError as error:
        assert "u.jsonl" in str(error) and "\n" not in str(error) and len(str(error)) < 2000
        return
    assert 0 < len(requests) <= 3 + put.count(b"\n")
    for request in requests:
        assert all(isinstance(item_id, str) for item_id in request.history + request.exclude + (request.allow or []))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user_id": [1]}, 'row 1: needs {"history"'),
        ({"history": ["a b c"]}, "row 1: \"history\" must be a list of item_ids; it is 'a b c'"),
        ({"history": [[1.5]]}, "which are text; it has 1.5"),
        ({"history": [["a", None]]}, "which are text; it has None"),
    ],
)
def test_parquet_without_lists_is_refused(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "u.parquet")
    with pytest.raises(ValueError, match=r"u\.parquet") as caught:
        read_requests(tmp_path / "u.parquet")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and more PAR1", TWO], ids=["empty", "cut", "damaged", "text"])
def test_a_broken_parquet_file_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"u\.parquet"):
        read_requests(written(tmp_path / "u.parquet", content))


def requests_of(*carried: dict) -> list[UserRequest]:
    return [UserRequest(f"line {i}", ["a"], [], None, keys) for i, keys in enumerate(carried)]


def answers_of(requests: list[UserRequest], titled: bool = False) -> list[dict]:
    item = {"item_id": "b", "score": -0.123456789} | ({"title": "pear"} if titled else {})
    titles = {"history_titles": ["apple"]} if titled else {}
    return [{**request.carried, "history": ["a"], **titles, "items": [item]} for request in requests]


@pytest.mark.parametrize("titled", [False, True])
def test_answers_are_read_back_as_they_were(tmp_path, titled):
    requests = requests_of({"user_id": 7}, {"user_id": 8, "since": datetime.date(2024, 1, 2)})
    answers = answers_of(requests, titled)
    answers[1] |= {"unknown": ["x"], "fallback": "popularity", "items": []}
    for name in ("a.parquet", "a.jsonl"):
        check_place(tmp_path / name, requests, [])
        write_answers(tmp_path / name, requests, answers)
    rows = pl.read_parquet(tmp_path / "a.parquet")
    assert rows["user_id"].to_list() == [7, 8] and rows["since"].to_list() == [None, datetime.date(2024, 1, 2)]
    assert rows["unknown"].to_list() == [[], ["x"]] and rows["fallback"].to_list() == [None, "popularity"]
    exploded = rows.explode("items").unnest("items")
    assert exploded["item_id"].to_list() == ["b"] and exploded["score"][0] == -0.123456789
    assert exploded["title"][0] == ("pear" if titled else None)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == answers[0] and lines[1]["since"] == "2024-01-02" and lines[1]["unknown"] == ["x"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "a.jsonl"}


def test_an_older_file_of_answers_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    place, requests = tmp_path / "a.parquet", requests_of({"user_id": 7})
    write_answers(place, requests, answers_of(requests))
    before = place.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmrec.data.requests.answer_file.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_answers(place, requests, answers_of(requests, titled=True))
    assert place.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_hold_the_answers_is_refused_at_once(tmp_path):
    (tmp_path / "catalog").mkdir()
    source = written(tmp_path / "u.jsonl", b"")
    for name, message in {
        "a.csv": "ends in '.csv'; answers are written as .parquet or .jsonl",
        "catalog": "ends in ''",
        "nowhere/a.jsonl": "lies in a directory that does not exist",
        "u.jsonl": "is the input",
    }.items():
        with pytest.raises(ValueError, match="out '") as caught:
            check_place(tmp_path / name, requests_of({}), [str(source), None])
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "values", [[1, "a"], [{"a": 1}, [1]], [2**70, 1], ["\ud800", "a"], [{}, {}]],
    ids=["number and text", "object and list", "too large", "half a character", "empty objects"],
)  # fmt: skip
def test_values_that_parquet_cannot_hold_are_refused_before_the_answers_are_made(tmp_path, values):
    requests = requests_of(*({"key": value} for value in values))
    with pytest.raises(ValueError, match=r"the values of 'key' .* have no type in parquet"):
        check_place(tmp_path / "a.parquet", requests, [])
    check_place(tmp_path / "a.jsonl", requests, [])
    write_answers(tmp_path / "a.jsonl", requests, answers_of(requests))
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["key"] for line in lines] == values
