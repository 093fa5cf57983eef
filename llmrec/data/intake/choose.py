"""Choice of the columns that are users, items, times and titles; a doubt becomes a message that proposes some.

In this order: the option, llmrec's own name, the layout, a common name if the file has just one of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from llmrec.data.columns import ITEM_ID, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.intake.files.rows import Rows, looks_like_a_row

OPTIONS = {
    USER_ID: "--user-column",
    ITEM_ID: "--item-column",
    TIMESTAMP: "--timestamp-column",
    TITLE: "--title-column",
    WEIGHT: "--weight-column",
}
COMMON = {  # in lower case, without blanks, `_`, `-` and the type that RecBole writes behind a colon
    USER_ID: "userid user uid reviewerid customerid customer visitorid memberid accountid personid clientid "
    "shopperid buyerid readerid playerid",
    ITEM_ID: "itemid item iid asin parentasin productid product sku articleid movieid businessid artistid "
    "trackid songid bookid isbn gameid appid venueid poiid locationid newsid videoid animeid recipeid courseid "
    "listingid contentid",
    TIMESTAMP: "timestamp time datetime date ts unixtime unixreviewtime unixtimestamp eventtime createdat "
    "interactiontime checkintime utctime localtime ratedat purchasedat orderdate",
    TITLE: "title name itemname productname producttitle itemtitle movietitle booktitle songtitle",
}
TYPE = r":(token|float)(_seq)?$"  # RecBole's, in a header
SHOWN = 20  # names of columns in a message


def choose(rows: Rows, wanted: Mapping[str, str | None], options: Mapping[str, str] = OPTIONS) -> dict[str, str]:
    """Choose the columns of a file; a choice by a common name is added to the notes of the rows.

    Args:
        rows: The opened file.
        wanted: Name of llmrec -> name that the user gave, or None.
        options: Name of llmrec -> option that names the column, for messages.

    Returns:
        Name of llmrec -> name of the column in the file.

    Raises:
        ValueError: If a column is missing or cannot be told from others.
    """
    known = rows.columns
    chosen, missing, problems = {}, [], []
    for name, given in wanted.items():
        if given is not None and given not in (*rows.names, *rows.others):
            given = re.sub(TYPE, "", given)
        found = [given] if given is not None else [each for each in (known.get(name), name) if each in rows.names][:1]
        if not found:
            found = [each for each in rows.names if plain(each) in COMMON[name].split() and each not in known.values()]
            if len(found) == 1:
                read_as = f"column {found[0]!r} is read as {name}; {options[name]} names another."
                rows.notes.append(f"{rows.path}: {read_as}")
        if len(found) > 1:
            problems.append(f"needs {options[name]}, because {' and '.join(map(repr, found))} may be meant")
        elif not found or found[0] not in (*rows.names, *rows.others):
            missing.append((given or name, options[name]))
        else:
            chosen[name] = found[0]
    if missing:
        problems.append(_missing(rows, missing))
    if problems:
        raise ValueError(f"{rows.path} {', and '.join(problems)}")
    return chosen


def choose_optional(rows: Rows, name: str, given: str | None, columns: Sequence[str] | None = None) -> dict[str, str]:
    """Choose a column that a file need not have.

    Args:
        rows: The opened file.
        name: Name of llmrec.
        given: Name that the user gave, or None.
        columns: Columns to choose from; all of them if None.

    Returns:
        Name of llmrec -> name of the column in the file; empty if the file has none.

    Raises:
        ValueError: If the user named a column that the file lacks.
    """
    if given is not None:
        return choose(rows, dict.fromkeys([name], given))
    names = rows.names if columns is None else columns
    known = [each for each in (rows.columns.get(name, name), name) if each in names]
    common = [each for each in names if plain(each) in COMMON.get(name, "").split()]
    found = known[:1] or (common if len(common) == 1 else [])
    return {name: found[0]} if found else {}


def _missing(rows: Rows, missing: list[tuple[str, str]]) -> str:
    """Say which columns are missing, what there is, and what to do."""
    near = {each.lower(): each for each in rows.names}
    parts = []
    for name, option in missing:
        close = difflib.get_close_matches(name.lower(), near, n=1, cutoff=0.75)
        parts.append(f"'{name}' ({option}{f' {near[close[0]]}?' if close else ''})")
    found = f"lacks the columns {', '.join(parts)}; it has {shown(rows.names)}."
    if rows.layout:
        are_own = {name for name, _ in missing} <= OPTIONS.keys()
        return (
            f"{found} It is read as {rows.layout}; {'is it the right file?' if are_own else 'leave these options out.'}"
        )
    if any(looks_like_a_row([name]) for name in rows.names):
        return f"{found} If that is a row, put a line with the names of the columns before it."
    if len(rows.names) == 1:
        return f"{found} If that is a whole line, give the text between its cells with --separator."
    without_times = " If it has no times, but the rows of each user are in their order, give --order-only."
    return f"{found} Name yours with these options.{without_times if TIMESTAMP in dict(missing) else ''}"


def plain(name: str) -> str:
    """Name of a column without what writers of headers differ in: case, blanks, `_`, `-` and RecBole's types."""
    return re.sub(r"[\s_\-]", "", re.sub(TYPE, "", name.lower()))


def shown(names: Iterable[str]) -> str:
    """Names in quotes, the first of many."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
