"""Files of requests, one user each: JSON lines or parquet, in any compression; every problem is reported at once.

A request has a `history`, and may have an `exclude` and an `allow`: lists of item_ids. Whole numbers in them are read
as text, as `llmrec prepare` reads ids. A null is no list: no history, no restriction. Further keys, such as user_id,
are kept for the answer, unless they look like one of these three misspelled: a filter must not be lost.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from llmrec.data.columns import ALLOW, EXCLUDE, FALLBACK, HISTORY, HISTORY_TITLES, ITEMS, UNKNOWN
from llmrec.data.intake.files.content import PARQUET, check_kind, check_utf8, endings, text_of
from llmrec.data.requests.item_lists import MOST_PROBLEMS, shown
from llmrec.runtime.manifest import JsonObject
from llmrec.runtime.parquet import parquet_table

LISTS = (HISTORY, EXCLUDE, ALLOW)
ANSWERED = (ITEMS, HISTORY_TITLES, UNKNOWN, FALLBACK)  # keys that answers add


@dataclass(frozen=True)
class UserRequest:
    """Request of one user.

    Attributes:
        place: Name for messages, such as a file and its line.
        history: item_ids, oldest first.
        exclude: item_ids that must not be recommended.
        allow: item_ids that answers are restricted to; None for any.
        carried: Further keys, which the answer repeats.
    """

    place: str
    history: list[str]
    exclude: list[str]
    allow: list[str] | None
    carried: JsonObject

    @classmethod
    def of(cls, place: str, values: Mapping[str, Any]) -> UserRequest:
        """Read the values of a request.

        Raises:
            ValueError: If a list is missing, or is none, or a further key cannot be kept.

        >>> UserRequest.of("line 1", {"user_id": 7, "history": ["a", 5], "exclude": None})
        UserRequest(place='line 1', history=['a', '5'], exclude=[], allow=None, carried={'user_id': 7})
        """
        carried = {key: values[key] for key in carried_keys(values)}
        return cls(
            place,
            _item_ids(HISTORY, values[HISTORY]) or [],
            _item_ids(EXCLUDE, values.get(EXCLUDE)) or [],
            _item_ids(ALLOW, values.get(ALLOW)),
            carried,
        )


def carried_keys(keys: Collection[str]) -> list[str]:
    """Find the keys of a request that its answer repeats.

    Raises:
        ValueError: If there is no history, or a further key cannot be kept.
    """
    if HISTORY not in keys:
        raise ValueError('needs {"history": [...]}, and may have "exclude" and "allow"')
    carried = [key for key in keys if key not in LISTS]
    for key in carried:
        meant = difflib.get_close_matches(key.lower(), LISTS, n=1, cutoff=0.75)
        meant = meant or [name for name in (EXCLUDE, ALLOW) if key.lower().startswith(name)]
        if meant:
            raise ValueError(f'has "{key}"; write "{meant[0]}" if that is meant, else rename it')
        if key in ANSWERED:
            raise ValueError(f'has "{key}", a key of the answers; rename it')
    return carried


def _item_ids(key: str, values: object) -> list[str] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f'"{key}" must be a list of item_ids; it is {shown(values)}')
    wrong = [entry for entry in values if not isinstance(entry, str | int) or isinstance(entry, bool)]
    if wrong:
        raise ValueError(f'"{key}" must be a list of item_ids, which are text; it has {shown(wrong[0])}')
    ids = [str(entry) for entry in values]
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{key}" has an item_id that is half a character, a lone surrogate') from None
    return ids


def read_requests(path: str | Path) -> list[UserRequest]:
    """Read the requests of a file, at least one.

    Args:
        path: JSON lines (one object per line), or parquet (one row per user) if its name ends in .parquet.

    Raises:
        ValueError: If the file cannot be read, or with every request of it that cannot, or if there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"input '{path}' does not exist; give JSON lines or a parquet file with one user per line.")
    requests, problems = [], []
    check_kind(path)
    for place, values in _parquet_rows(path) if endings(path)[0] in PARQUET else _json_lines(path):
        try:
            requests.append(UserRequest.of(f"{path}, {place}", _object(values)))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        more = f"; {len(problems) - MOST_PROBLEMS} more such lines" if len(problems) > MOST_PROBLEMS else ""
        raise ValueError(f"input '{path}': " + "; ".join(problems[:MOST_PROBLEMS]) + more + ".")
    if not requests:
        raise ValueError(f"input '{path}': no request in it; give one user per line.")
    return requests


def _object(values: object) -> Mapping[str, Any]:
    """A row of a table as it is, or a line of text as the JSON object that it must be."""
    if isinstance(values, str):
        try:
            values = json.loads(values, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise ValueError("not a request, but lists within lists a thousand deep") from None
    if not isinstance(values, dict):
        raise ValueError('needs {"history": [...]}, and may have "exclude" and "allow"')
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON ({name} is no JSON number)")


def _json_lines(path: Path) -> Iterator[tuple[str, str]]:
    source = text_of(path)
    check_utf8(path, source)
    text = (source if isinstance(source, bytes) else source.read_bytes()).decode()
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON text may hold U+2028
        if line.strip():
            yield f"line {number}", line


def _parquet_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    table = parquet_table(path, "write it again")
    repeated = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"input '{path}' has two columns '{repeated}'; rename one.")
    try:
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"input '{path}' has values that cannot be read ({error}); write them as text.") from None
    for row in range(table.num_rows):
        yield f"row {row + 1}", {name: values[row] for name, values in columns.items()}
