"""JSON lines: every digit of a number is kept, nested values are text until they are used, bad lines are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llmrec.data.intake.files.opened import open_rows
from llmrec.data.intake.read import read_tables

LINES = [
    '{"user_id": "u", "item_id": 3.0, "timestamp": 1700000000123456789, "tags": ["a", {"b": 1.50}]}',
    '{"item_id": "007", "user_id": 12345678901234567890123, "timestamp": 1.70e9, "seen": true, "tags": null}',
]
CELLS = [
    ("u", "3.0", "1700000000123456789", '["a", {"b": 1.5}]', None),
    ("12345678901234567890123", "007", "1.70e9", None, "true"),
]


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.json", "LOG.JSONL", "log.txt", "log"])
@pytest.mark.parametrize("between", ["\n", "\r\n", "\n\n  \n"])
def test_cells_are_text_as_written(put, name, between):
    rows = open_rows(put(name, between.join(LINES)))
    assert rows.names == ["user_id", "item_id", "timestamp", "tags", "seen"]
    assert rows.read(rows.names).rows() == CELLS
    assert rows.place(1, 2) == ("line 4" if "  " in between else "line 2")


def test_other_ways_to_write_the_same(put):
    whole = "[" + ",\n".join(LINES) + "]"
    printed = "{'user_id': 'u', 'item_id': 'a', 'tags': [['x', 'y']], 'seen': True, 'price': None}\n"
    for path in (put("log.json", whole), put("log.json.gz", gzip.compress("\n".join(LINES).encode("utf-16")))):
        rows = open_rows(path)
        assert rows.read(rows.names).rows() == CELLS
    rows = open_rows(put("meta.json", printed))
    assert rows.read(["tags", "price", "seen"]).rows() == [('[["x", "y"]]', None, "true")]


BAD = {
    "cut": (LINES[0] + "\n" + LINES[1][:40], "line 2 is not JSON"),
    "not an object": (LINES[0] + "\n[1]\n", "line 2 holds list, not an object"),
    "one object over several lines": (json.dumps({"a": 1}, indent=1), r"line 1 is not JSON.*jq -c \. log.jsonl"),
    "array that is cut": ("[" + LINES[0], "array is not JSON"),
    "array of numbers": ("[1, 2]", "element 1 of the array holds int"),
    "nested too deep": ('{"a":' * 100_000, "line 1 is not JSON"),
    "number too long": ('{"a": ' + "9" * 5000 + "}", "line 1 is not JSON"),
    "half a character": (
        '{"user_id": "\\ud83d", "item_id": "a", "timestamp": 1}',
        "line 1 has half of a surrogate pair",
    ),
    "latin-1": ('{"user_id": "é"}'.encode("latin1"), "not UTF-8: line 1"),
    "no object": ("\n\n", "is empty"),
    "list as id": (
        '{"user_id": "u", "item_id": ["a"], "timestamp": 1}',
        "column 'item_id' holds a list or an object, first at line 1",
    ),
    "object as time": (
        '{"user_id": "u", "item_id": "a", "timestamp": {"$date": 1}}',
        "'timestamp' holds a list or an object",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines(put, case):
    content, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        read_tables(put("log.jsonl", content))
    assert "log.jsonl" in str(error.value) and len(str(error.value)) < 500


def test_unused_columns_may_be_anything(put):
    lines = [
        '{"user_id":"u","item_id":"a","timestamp":1,"x":{"y":[1]}}',
        '{"user_id":"u","item_id":"b","timestamp":2,"x":7}',
    ]
    dataset = read_tables(put("log.jsonl", "\n".join(lines)))
    assert dataset.interactions.rows() == [("u", "a", 1, 1.0), ("u", "b", 2, 1.0)]
    assert dataset.notes == (f"{put('log.jsonl', '')}: not read: 'x'.",)
