"""Ids that look alike, as joins and exports make them: `p3` and `p3 `, `3` and `3.0`, `nan`.

Two ids look alike if they are equal once these differences are removed: the form of Unicode characters, blanks and
invisible characters, quotes around the id, upper and lower case, and the ways to write a whole number. They stay
different ids, because only the owner of the data knows whether they are.
"""

from __future__ import annotations

import unicodedata

import polars as pl

from llmrec.runtime.manifest import JsonObject

INVISIBLE = r"[\p{Cc}\p{Cf}]"  # control characters, zero-width characters, byte order marks
EDGES = " \t\r\n\"'\u00a0"
NUMBER = r"^\+?0*(\d+)(?:\.0*)?$"
SCIENTIFIC = r"^\+?\d(?:\.\d+)?e\+?\d{1,2}$"
NAMES_OF_NOTHING = ("nan", "none", "null", "na", "n/a", "<na>", "nat", "nil", "undefined", "")
COMPARED = 1_000_000
SHOWN = 3  # groups of each kind that are named
KINDS = ("blanks", "number", "case", "characters")
SAYS = {
    "blanks": "equal but for blanks, quotes or invisible characters",
    "number": "the same number in another form",
    "case": "equal but for upper and lower case",
    "characters": "equal but for the form of their characters",
}


def look_alikes(ids: pl.Series) -> JsonObject:
    """Groups of ids that look alike.

    Args:
        ids: Different ids, as text; the first million is compared, in about a second.

    Returns:
        groups: number of groups; ids: number of ids in them; kinds: kind of difference -> number of groups and the
        first examples, each a list of two or more ids.
    """
    ids = ids.head(COMPARED)
    same = pl.DataFrame({"id": ids, "folded": folded(ids)}).filter(pl.col("folded").is_duplicated())
    groups = same.group_by("folded").agg(pl.col("id").sort()).sort("folded")["id"].to_list()
    kinds: dict[str, JsonObject] = {}
    for group in groups:
        found = kinds.setdefault(kind_of_difference(*group[:2]), {"groups": 0, "examples": []})
        found["groups"] += 1
        if len(found["examples"]) < SHOWN:
            found["examples"].append(group[:SHOWN])
    return {"groups": len(groups), "ids": same.height, "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds}}


def folded(ids: pl.Series) -> pl.Series:
    """Ids without the differences that are easy to miss; equal for ids that look alike.

    >>> folded(pl.Series(["P3", "p3 ", "3.0", "03", "1e3", "'1000'", "3.5"])).to_list()
    ['p3', 'p3', '3', '3', '1000', '1000', '3.5']
    """
    text = ids.str.normalize("NFKC").str.replace_all(INVISIBLE, "").str.strip_chars(EDGES).str.strip_chars()
    text = text.str.to_lowercase().str.replace(NUMBER, "${1}")
    scientific = text.str.contains(SCIENTIFIC)
    if not scientific.any():
        return text
    number = text.set(~scientific, None).cast(pl.Float64, strict=False)
    whole = (number == number.floor()) & (number < 2**53)  # beyond, neighbouring integers are one float
    return text.zip_with(~whole.fill_null(False), number.cast(pl.Int64, strict=False).cast(pl.String))


def kind_of_difference(one: str, other: str) -> str:
    """One of KINDS for two ids that look alike: the first difference whose removal makes them equal.

    >>> [kind_of_difference(*pair) for pair in (("p3", "p3 "), ("3", "3.0"), ("Ab", "aB"), ("\\u212b", "\\u00c5"))]
    ['blanks', 'number', 'case', 'characters']
    """
    bare = [_bare(text) for text in (one, other)]
    if bare[0] == bare[1]:
        return "blanks"
    plain = [unicodedata.normalize("NFKC", text) for text in bare]
    if plain[0] == plain[1]:
        return "characters"
    return "case" if plain[0].lower() == plain[1].lower() else "number"


def _bare(text: str) -> str:
    visible = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cc", "Cf"))
    return visible.strip(EDGES).strip()


def names_of_nothing(ids: pl.Series) -> list[str]:
    """Those of the ids that say that there is none, such as `nan`, `None` and `null`.

    Args:
        ids: Different ids, as text.
    """
    nothing = ids.str.strip_chars().str.to_lowercase().is_in(NAMES_OF_NOTHING)
    return ids.filter(nothing).sort().to_list()


def known_look_alike(unknown: pl.Series, known: pl.Series) -> str | None:
    """Sentence about unknown ids that look like known ones; None if none does.

    Args:
        unknown: Ids that a table lacks, each any number of times; the first million different ones are looked up.
        known: Ids of the table.

    >>> known_look_alike(pl.Series(["3.0", "zebra"]), pl.Series(["3", "4"]))
    "'3.0' looks like '3' there, the same number in another form"
    """
    if unknown.is_empty():
        return None
    asked = unknown.unique(maintain_order=True).head(COMPARED)
    table = pl.DataFrame({"known": known, "folded": folded(known)}).unique("folded", keep="first", maintain_order=True)
    found = pl.DataFrame({"unknown": asked, "folded": folded(asked)}).join(table, on="folded", maintain_order="left")
    if found.is_empty():
        return None
    one, other = found["unknown"][0], found["known"][0]
    more = f" ({found.height} of the unknown ids look like one there)" if found.height > 1 else ""
    return f"{one!r} looks like {other!r} there, {SAYS[kind_of_difference(one, other)]}{more}"
