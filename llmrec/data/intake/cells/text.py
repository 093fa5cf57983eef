"""Text of items, cleaned by one rule for titles, texts, descriptive fields and the values of lists.

In this order: entities are resolved (`&amp;` and, if escaped twice, `&amp;amp;`), terminal codes and invisible
characters are removed, HTML elements become blanks (`<br>`, `<li>`) or nothing (`<b>`), the result is in Unicode's
normal form C, and white space collapses. `<` is markup only before the name of an HTML element, so `I <3 you`,
`a <b and c> d` and `<a_1>` stay. A cell that holds no more than a word for "missing" is missing.
"""

from __future__ import annotations

import re
from html import unescape
from html.entities import html5

import polars as pl

# pandas.read_csv's default words for missing values, and those of SQL, Hive, datetimes and MovieLens.
MISSING = (
    *("nan", "NaN", "NAN", "-nan", "-NaN", "None", "NONE", "none", "null", "NULL", "Null", "NA", "N/A", "n/a"),
    *("#N/A", "#N/A N/A", "#NA", "<NA>", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "\\N", "NaT"),
    "(no genres listed)",
)
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
MAX_ESCAPES = 3  # times that text may have been escaped, one time after another
BREAKS = (
    "address|article|aside|blockquote|body|br|button|center|dd|div|dl|dt|embed|figcaption|figure|footer|form|frame|"
    "h[1-6]|head|header|hr|html|iframe|img|input|label|li|link|main|meta|nav|noscript|object|ol|option|param|pre|"
    "section|select|source|table|tbody|td|textarea|tfoot|th|thead|tr|ul|video"
)
INLINE = "abbr|bdi|bdo|big|cite|code|del|em|font|ins|kbd|mark|samp|small|span|strike|strong|sub|sup|tt|var|wbr"
# Names that are words or letters: only attributes with a value tell `<a href="x">` from `a <b and c> d`.
VALUED = r"""(?:\s+[A-Za-z_:][-\w:.]*\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?"""
ANY = r"""(?:\s(?:"[^"]*"|'[^']*'|[^<>"'])*|/)?"""
MARKUP = (
    (r"(?s)<!--.*?-->|(?i)<script\b.*?</script\s*>|<style\b.*?</style\s*>", " "),
    (rf"(?i)</?(?:{BREAKS}){ANY}>|</?p{VALUED}>", " "),
    (rf"(?i)</?(?:{INLINE}){ANY}>|</?[abiqsu]{VALUED}>", ""),
)
# Terminal sequences of ECMA-48, then control characters but no white space, then invisible characters; the joiners
# U+200C and U+200D stay, which emoji, Persian and Indian scripts need.
INVISIBLE = (
    r"(?s)(?:\x1b\[|\x{9b})[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x{9d}).*?(?:\x07|\x1b\\|\x{9c})"
    r"|\x1b[PX^_].*?\x1b\\|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0e-\x1f\x7f\x{80}-\x{84}\x{86}-\x{9f}]"
    r"|[\x{ad}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffb}]"
)


def clean(text: pl.Series) -> pl.Series:
    """Clean every cell of a text column.

    Args:
        text: (N,) strings.

    Returns:
        (N,) strings; null where nothing is left.

    >>> clean(pl.Series(["Tom &amp;amp; Jerry<br>The <b>Movie</b>", "<a_1> I <3 you", " "])).to_list()
    ['Tom & Jerry The Movie', '<a_1> I <3 you', None]
    """
    cells = _unescape(text).str.replace_all(INVISIBLE, "")
    for pattern, replacement in MARKUP:
        cells = cells.str.replace_all(pattern, replacement)
    return collapse(cells.str.normalize("NFC"))


def collapse(cells: pl.Series) -> pl.Series:
    """Reduce white space to single blanks between words; a cell of white space becomes null."""
    return cells.str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)


def is_missing(text: pl.Series) -> pl.Series:
    """(N,) bool: cells that are given, and say no more than that there is no value."""
    return text.str.strip_chars().is_in(MISSING).fill_null(False)


def _unescape(text: pl.Series) -> pl.Series:
    escaped = text.filter(text.str.contains(ENTITY.pattern).fill_null(False)).unique()
    return text.replace(escaped, pl.Series([_resolve(cell) for cell in escaped], dtype=pl.String))


def _resolve(cell: str) -> str:
    """Resolve entities that end in a semicolon; `&copy=2` in an address is none."""
    for _ in range(MAX_ESCAPES):
        resolved = ENTITY.sub(_character, cell)
        if resolved == cell:
            break
        cell = resolved
    return cell


def _character(entity: re.Match[str]) -> str:
    return unescape(entity[0]) if entity[0][1] == "#" or entity[0][1:] in html5 else entity[0]
