"""Files of answers, one user each, as JSON lines or parquet: `history`, `items`, what was unknown, and carried keys.

A file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.columns import FALLBACK, HISTORY, HISTORY_TITLES, ITEM_ID, ITEMS, SCORE, TITLE, UNKNOWN
from llmrec.data.requests.id_lists import TEXTS
from llmrec.data.requests.item_lists import shown
from llmrec.data.requests.request_file import UserRequest
from llmrec.runtime import disk
from llmrec.runtime.manifest import JsonObject

POPULARITY = "popularity"  # FALLBACK of a user without a known item
JSON, PARQUET = (".jsonl", ".ndjson", ".json"), ".parquet"
ITEM = pa.struct({ITEM_ID: pa.string(), SCORE: pa.float64(), TITLE: pa.string()})


def check_place(path: Path, requests: Sequence[UserRequest], inputs: Sequence[str | None]) -> None:
    """Refuse a file that cannot hold the answers, before any is made.

    Args:
        path: File to write.
        requests: What is answered.
        inputs: Files that are read.

    Raises:
        ValueError: If it is no JSON lines or parquet, its directory is absent, or it is an input; or if parquet has no
            type for the values of a carried key.
    """
    if path.suffix.lower() not in (*JSON, PARQUET):
        raise ValueError(f"out '{path}' ends in '{path.suffix}'; answers are written as .parquet or .jsonl.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a directory" if path.is_dir() else "lies in a directory that does not exist"
        raise ValueError(f"out '{path}' {problem}; name a file in a directory that exists.")
    same = next((source for source in inputs if source and Path(source).exists() and _is_same(path, source)), None)
    if same:
        raise ValueError(f"out '{path}' is the input '{same}', which would be lost; choose another --out.")
    if path.suffix.lower() == PARQUET:
        carried_columns(requests)


def _is_same(path: Path, source: str) -> bool:
    return path.resolve() == Path(source).resolve()


def carried_columns(requests: Sequence[UserRequest]) -> dict[str, pa.Array]:
    """Columns of the carried keys, null where a request lacks one.

    Raises:
        ValueError: If the values of a key have no common type.
    """
    found = {}
    for name in dict.fromkeys(key for request in requests for key in request.carried):
        values = [request.carried.get(name) for request in requests]
        try:
            found[name] = pa.array(values)
            pq.write_table(pa.table({name: found[name]}), pa.BufferOutputStream())
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, RecursionError):
            kinds = sorted({type(value).__name__ for value in values if value is not None})
            raise ValueError(
                f"the values of {shown(name)} ({', '.join(kinds)}) have no type in parquet that holds all of them; "
                "make them alike, or write .jsonl."
            ) from None
    return found


def write_answers(path: Path, requests: Sequence[UserRequest], answers: Sequence[JsonObject]) -> None:
    """Write the answers to requests; a file of that name is replaced.

    Args:
        path: File to write.
        requests: What was answered.
        answers: An answer for each, with the carried keys.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with disk.naming(path):
        try:
            with temporary.open("wb") as file:
                if path.suffix.lower() == PARQUET:
                    pq.write_table(_table(requests, answers), file)
                else:
                    for answer in answers:
                        line = json.dumps(answer, ensure_ascii=False, default=str)
                        file.write((line + "\n").encode("utf-8", "backslashreplace"))  # a lone surrogate stays JSON
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _table(requests: Sequence[UserRequest], answers: Sequence[JsonObject]) -> pa.Table:
    """One row per user; the columns are the same whether or not something was unknown."""
    own = {
        HISTORY: TEXTS,
        **({HISTORY_TITLES: TEXTS} if HISTORY_TITLES in answers[0] else {}),
        ITEMS: pa.list_(ITEM),
        UNKNOWN: TEXTS,
        FALLBACK: pa.string(),
    }
    absent: dict[str, list[str]] = {UNKNOWN: []}
    made = {name: pa.array([answer.get(name, absent.get(name)) for answer in answers], own[name]) for name in own}
    return pa.table(carried_columns(requests) | made)
