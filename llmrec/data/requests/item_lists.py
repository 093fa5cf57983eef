"""Lists of item_ids as callers give them: lists, tuples, arrays, and columns of pandas, polars or pyarrow; their rows.

What could be meant in more than one way is refused with a sentence: text in the place of a list, whole tables, lists
within lists, and generators, which can be read only once.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np

from llmrec.data.item_ids import UNKNOWN_ROW, RowOf

Unknown = Literal["error", "skip"]
MOST_PROBLEMS = 10  # that one error tells
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


def entries(values: object, needed: str = "a list of item_ids", ordered: bool = False) -> list[Any]:
    """Read the entries of a list, whichever library it is of.

    Args:
        values: List, tuple, array or column; a set too, unless `ordered`.
        needed: Words for what should have been given.
        ordered: Refuse sets.

    Returns:
        The entries; those of a numpy array or pyarrow column as Python's own.

    Raises:
        ValueError: If `values` is anything else, with a sentence whose subject the caller adds.

    >>> entries(("red", "green")), entries({"red": 1}.keys())
    (['red', 'green'], ['red'])
    >>> entries("red")
    Traceback (most recent call last):
    ValueError: is 'red'; a list of item_ids is needed
    """
    if hasattr(values, "columns"):
        raise ValueError(f"is a whole {type(values).__name__}; {needed} is needed, such as one column of it")
    if hasattr(values, "__next__"):
        raise ValueError(f"is a {type(values).__name__}, which can be read only once; {needed} is needed: list(…)")
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping) or (ordered and isinstance(values, Set)):
        raise ValueError(f"is {shown(values)}; {needed} is needed")
    try:
        return values.to_pylist() if hasattr(values, "to_pylist") else list(values)  # type: ignore[call-overload]
    except TypeError:
        raise ValueError(f"is {shown(values)}; {needed} is needed") from None


def item_ids(values: object, ordered: bool = False) -> list[str]:
    """Read a list of item_ids.

    Args:
        values: As `entries` takes it.
        ordered: Refuse sets.

    Raises:
        ValueError: If it is no list, or an entry is no text, with a sentence whose subject the caller adds.

    >>> item_ids(["red", 5])
    Traceback (most recent call last):
    ValueError: holds 5 (int) at place 1; item_ids are text, such as '5'
    """
    found = entries(values, ordered=ordered)
    wrong = next((place for place, entry in enumerate(found) if not isinstance(entry, str)), None)
    if wrong is None:
        return found
    entry, kind = found[wrong], type(found[wrong]).__name__
    if isinstance(entry, int) or hasattr(entry, "__index__"):
        raise ValueError(f"holds {shown(entry)} ({kind}) at place {wrong}; item_ids are text, such as '{entry}'")
    nested = "; a list within a list" if hasattr(entry, "__len__") and not isinstance(entry, bytes) else ""
    raise ValueError(f"holds {shown(entry)} ({kind}) at place {wrong}{nested}; item_ids are text")


def shown(value: object) -> str:
    """Short text of a value on one line, whatever it is.

    >>> shown(["red"] * 100)
    "['red', 'red', 'red', 'red', 'red', 'red', ...]"
    """
    try:
        return " ".join(SHORT.repr(value).split())
    except Exception:  # of a repr that is not ours
        return f"a {type(value).__name__}"


def find_rows(
    lists: Mapping[str, object],
    row_of: RowOf,
    unknown: Unknown = "error",
    ordered: bool = False,
    remedy: str = "",
) -> list[tuple[np.ndarray, list[str]]]:
    """Convert lists of external ids to item rows.

    Args:
        lists: Maps a name for messages to a list of item_ids, as `entries` takes it.
        row_of: Item row of each known item_id.
        unknown: `error` refuses unknown items; `skip` leaves them out.
        ordered: Refuse sets.
        remedy: Sentence that follows a complaint about unknown items.

    Returns:
        For each list, the int64 item rows of its known items, and its unknown item_ids.

    Raises:
        ValueError: If a value is no list of text, or names unknown items; with the first ten such lists.

    >>> from llmrec.data.item_ids import ItemIds
    >>> find_rows({"history": ["red", "mauve"]}, ItemIds(["red"]).row_of, "skip")
    [(array([0]), ['mauve'])]
    """
    read: dict[str, list[str] | ValueError] = {}
    for name, values in lists.items():
        try:
            read[name] = item_ids(values, ordered)
        except ValueError as error:
            read[name] = error
    # All lists at once: asking for each item costs ten times as much.
    all_rows, done = row_of.rows([i for ids in read.values() if isinstance(ids, list) for i in ids]), 0
    found, problems, advice = [], [], ""
    for name, ids in read.items():
        if isinstance(ids, ValueError):
            problems.append(f"{name} {ids}")
            continue
        rows, done = all_rows[done : done + len(ids)], done + len(ids)
        strangers = [ids[place] for place in np.flatnonzero(rows == UNKNOWN_ROW)]
        if strangers and unknown == "error":
            problems.append(names_unknown(name, strangers))
            advice = f" {remedy}" if remedy else ""
        found.append((rows[rows != UNKNOWN_ROW], strangers))
    if problems:
        raise ValueError(f"{complaint(problems, len(problems), row_of)}{advice}")
    return found


def names_unknown(name: str, strangers: Sequence[str]) -> str:
    """Sentence about a list that has these unknown item_ids."""
    return f"{name} names items that this checkpoint does not know: {shown(list(strangers[:3]))}"


def complaint(problems: Sequence[str], count: int, row_of: RowOf) -> str:
    """Text about lists that cannot be used, with what the checkpoint knows.

    Args:
        problems: Sentences about the first lists.
        count: Number of all such lists.
        row_of: Item row of each known item_id.
    """
    more = f"; {count - MOST_PROBLEMS} more such lists" if count > MOST_PROBLEMS else ""
    known = f"Its catalogue has {len(row_of)} items, such as {shown(next(iter(row_of), None))}."
    return f"{'; '.join(problems[:MOST_PROBLEMS])}{more}. {known}"
