"""Requests as callers give them, checked before the model runs: numbers become integers, item_ids become item rows.

Shapes: B histories.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from llmrec.data.requests.item_lists import Unknown, entries, find_rows, shown
from llmrec.sid.table import SidTable

UNKNOWN = ("error", "skip")
SKIP = "unknown='skip' leaves unknown items out."
NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class ItemRequests:
    """Requests of B users in item rows.

    Attributes:
        histories: B arrays of item rows, oldest first.
        exclude: B arrays of item rows that are barred, those of the history included if they are to be.
        exclude_all: Item rows that are barred for all users.
        allow: B arrays of item rows that answers are restricted to, None for any; users who were given one list share
            one array.
        unknown: B lists of the unknown item_ids of each history.
        unknown_filters: Unknown item_ids of `exclude` and `allow`, each once.
    """

    histories: list[np.ndarray]
    exclude: list[np.ndarray]
    exclude_all: np.ndarray
    allow: list[np.ndarray | None]
    unknown: list[list[str]]
    unknown_filters: list[str]


def read_requests(table: SidTable, histories: object, exclude: object, allow: object, unknown: Unknown) -> ItemRequests:
    """Check requests and convert their item_ids to item rows.

    Args:
        table: Semantic IDs of the items.
        histories: B lists of item_ids.
        exclude: "seen" bars the items of each history, one list of item_ids bars these beside them, B lists bar exactly
            these (None: nothing), and None bars nothing.
        allow: item_ids that answers are restricted to: one list for all users, or B lists, None for a user without a
            restriction; None restricts nobody.
        unknown: `error` refuses unknown items, `skip` leaves them out.

    Raises:
        ValueError: If a list is none, holds what is no text or, unless they are skipped, unknown items; if the lists
            differ in number; or if `allow` is empty for all users.
    """
    check_choice("unknown", unknown, UNKNOWN)
    lists = _entries("histories", histories, "a list that has a history, a list of item_ids, for each user")
    found = find_rows({f"history {i}": ids for i, ids in enumerate(lists)}, table.row_of, unknown, True, SKIP)
    rows = [known for known, _ in found]
    barred = _UserLists.read("exclude", [] if _is_seen(exclude) else exclude, len(rows), table, unknown)
    allowed = _UserLists.read("allow", allow, len(rows), table, unknown)
    excluded = rows if barred.is_for_all else [NO_ROWS if own is None else own for own in barred.rows]
    for_all = barred.rows[0] if barred.is_for_all and barred.rows else None
    if allowed.is_for_all and not len(allowed.given):
        raise ValueError("allow is empty, so that no item can be recommended; leave it out to allow every item.")
    strangers = dict.fromkeys(barred.unknown + allowed.unknown)
    return ItemRequests(
        rows,
        excluded,
        NO_ROWS if for_all is None else for_all,
        allowed.rows,
        [ids for _, ids in found],
        list(strangers),
    )


def _is_seen(exclude: object) -> bool:
    return isinstance(exclude, str) and exclude == "seen"


@dataclass(frozen=True)
class _UserLists:
    """Lists of item_ids that were given for all users, or for each.

    Attributes:
        given: The lists; or the item_ids, if they are for all users.
        is_for_all: True if one list was given.
        rows: B arrays of item rows, None for a user without a list; one object for all who were given one object.
        unknown: Unknown item_ids.
    """

    given: Sequence[object]
    is_for_all: bool
    rows: list[np.ndarray | None]
    unknown: list[str]

    @classmethod
    def read(cls, what: str, lists: object, count: int, table: SidTable, unknown: Unknown) -> _UserLists:
        """Read what was given for B users; None is no list for anyone.

        Raises:
            ValueError: If it is neither one list of known item_ids nor one for each user.
        """
        if lists is None:
            return cls([None] * count, False, [None] * count, [])
        given = _entries(what, lists, "one list of item_ids for all users, or one for each history,", ordered=False)
        if all(isinstance(entry, str) for entry in given) and (given or count):
            ((rows, strangers),) = find_rows({what: given}, table.row_of, unknown, remedy=SKIP)
            return cls(given, True, [rows] * count, strangers)
        if len(given) != count or isinstance(lists, Set):
            raise ValueError(
                f"{what} needs one list of item_ids for each of the {count} histories, or one for all of them; it is a "
                f"{type(lists).__name__} of {len(given)}, first {shown(given[0])}."
            )
        first: dict[int, int] = {}  # of each object, its first user; `given` keeps all of them alive
        for user, ids in enumerate(given):
            if ids is not None:
                first.setdefault(id(ids), user)
        found = find_rows(
            {f"{what} {user}": given[user] for user in first.values()}, table.row_of, unknown, remedy=SKIP
        )
        found_of = dict(zip(first, found, strict=True))
        rows_of_users = [None if ids is None else found_of[id(ids)][0] for ids in given]
        return cls(given, False, rows_of_users, [item_id for _, ids in found for item_id in ids])


def _entries(name: str, values: object, needed: str, ordered: bool = True) -> Sequence[object]:
    try:
        return entries(values, needed, ordered)
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from None


def whole_number(name: str, value: object, least: int) -> int:
    """Read a whole number; those of numpy and torch count, True and 3.0 do not.

    Raises:
        ValueError: If it is none, or less than `least`.

    >>> whole_number("k", np.int32(3), 1)
    3
    >>> whole_number("k", 3.0, 1)
    Traceback (most recent call last):
    ValueError: k is 3.0 (float); a whole number of at least 1 is needed.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(
            f"{name} is {shown(value)} ({type(value).__name__}); a whole number of at least {least} is needed."
        )
    if number < least:
        raise ValueError(f"{name} is {number}; at least {least} is needed.")
    return number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shown(value)}; choose {' or '.join(choices)}.")
