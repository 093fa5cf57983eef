"""Public files without a header, known by their lines: each entry names where its publisher describes it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.intake.public.layout import Layout
from llmrec.data.intake.public.shapes import columns, first_entry, histories, keyed_histories, keyed_items

ISO_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
TWITTER_TIME = r"\w{3} \w{3} \d\d \d\d:\d\d:\d\d \+0000 \d{4}"
NUMBER = r"-?\d+(?:\.\d+)?(?:[eE]-?\d+)?"
VENUE = r"[0-9a-f]{24}"
RATINGS = {WEIGHT: "rating"}
LATIN = "latin-1"
NO_GENRES = "(no genres listed)"
GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
ORDER = "It has no times: the rows of a user count as in order."


def movies(table: pl.DataFrame) -> pl.DataFrame:
    """Titles of MovieLens, `Toy Story (1995)`, parted into title and year; genres between bars become lists."""
    parts = pl.col(TITLE).str.extract_groups(r"^(?<title>.*?)\s*(?:\((?<year>\d{4})\))?\s*$").struct
    return table.with_columns(
        parts.field("title"),
        parts.field("year"),
        pl.col("genres").replace("", None).str.split("|").list.eval(pl.element().filter(pl.element() != NO_GENRES)),
    )


def movies_100k(table: pl.DataFrame) -> pl.DataFrame:
    """Titles and years of MovieLens-100K, whose genres are 19 columns of 0 and 1."""
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K]
    genres = pl.concat_list(flags).list.drop_nulls().list.join("|").alias("genres")
    return movies(table.select(ITEM_ID, TITLE, genres))


def purchases(table: pl.DataFrame) -> pl.DataFrame:
    """Purchases of Steam-200k; the game is item and title."""
    bought = table.filter(pl.col("behaviour") == "purchase")
    return bought.select(USER_ID, pl.col("game").alias(ITEM_ID), pl.col("game").alias(TITLE))


def tracks(table: pl.DataFrame) -> pl.DataFrame:
    """Tracks of LastFM-1K, under their MusicBrainz id or, where they have none, under artist and title."""
    named = pl.concat_str("artist", TITLE, separator=" - ", ignore_nulls=True)
    return table.with_columns(pl.coalesce(pl.col("track_id").replace("", None), named).alias(ITEM_ID))


LAYOUTS = (
    Layout(
        "MovieLens ratings",  # https://files.grouplens.org/datasets/movielens/ml-1m-README.txt
        line=r"\d+::\d+::[\d.]+::\d+",
        separator="::",
        header=(USER_ID, ITEM_ID, "rating", TIMESTAMP),
        columns=RATINGS,
    ),
    Layout(
        "MovieLens movies",
        line=r"\d+::.*::[^:]*",
        file=r"movies",
        separator="::",
        header=(ITEM_ID, TITLE, "genres"),
        encoding=LATIN,
        reshape=movies,
    ),
    Layout(
        "MovieLens-100K ratings",  # https://files.grouplens.org/datasets/movielens/ml-100k-README.txt
        line=r"\d+\t\d+\t[1-5]\t\d{9}",
        separator="\t",
        header=(USER_ID, ITEM_ID, "rating", TIMESTAMP),
        columns=RATINGS,
    ),
    Layout(
        "MovieLens-100K movies",
        line=r"\d+\|.*(?:\|[01]){19}",
        separator="|",
        header=(ITEM_ID, TITLE, "released", "video_released", "url", *GENRES_100K),
        encoding=LATIN,
        reshape=movies_100k,
        limit="Dates of release and addresses are left out.",
    ),
    Layout(
        "Amazon-2014 ratings",  # https://jmcauley.ucsd.edu/data/amazon/links.html
        line=r"[A#][^,]*,[0-9B][0-9A-Z]{9},[1-5](?:\.0)?,\d+",
        separator=",",
        header=(USER_ID, ITEM_ID, "rating", TIMESTAMP),
        columns=RATINGS,
        limit="Times are days.",
    ),
    Layout(
        "Amazon-2018 ratings",  # https://nijianmo.github.io/amazon: item, user, rating, timestamp
        line=r"[0-9B][0-9A-Z]{9},[A#][^,]*,[1-5](?:\.0)?,\d+",
        separator=",",
        header=(ITEM_ID, USER_ID, "rating", TIMESTAMP),
        columns=RATINGS,
        limit="Times are days.",
    ),
    Layout(
        "Steam-200k",  # https://www.kaggle.com/datasets/tamber/steam-video-games
        line=r'\d+,(?:"(?:[^"]|"")*"|[^,]*),(?:purchase|play),[\d.]+,0',
        separator=",",
        header=(USER_ID, "game", "behaviour", "hours", "zero"),
        reshape=purchases,
        order_only=True,
        limit="Only purchases are read. It has no times, and its order is not that of the purchases.",
    ),
    Layout(
        "Gowalla check-ins",  # https://snap.stanford.edu/data/loc-gowalla.html; also Brightkite
        line=rf"\d+\t{ISO_TIME}\t{NUMBER}\t{NUMBER}\t\w+",
        separator="\t",
        header=(USER_ID, TIMESTAMP, LAT, LON, ITEM_ID),
    ),
    Layout(
        "LastFM-1K",  # http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html
        line=rf"user_\d+\t{ISO_TIME}\t[^\t]*\t[^\t]*\t[^\t]*\t[^\t]*",
        separator="\t",
        header=(USER_ID, TIMESTAMP, "artist_id", "artist", "track_id", TITLE),
        reshape=tracks,
        limit="Items are tracks; --item-column artist_id makes them artists.",
    ),
    Layout(
        "Foursquare check-ins",  # https://sites.google.com/site/yangdingqi/home/foursquare-dataset (NYC and TKY, 2014)
        line=rf"\d+\t{VENUE}\t[^\t]*\t[^\t]*\t{NUMBER}\t{NUMBER}\t-?\d+\t{TWITTER_TIME}",
        separator="\t",
        header=(USER_ID, ITEM_ID, "category_id", "category", LAT, LON, "timezone_minutes", TIMESTAMP),
        encoding=LATIN,
        limit="Times are UTC.",
    ),
    Layout(
        "Foursquare check-ins of the world",  # the same page, 2015
        line=rf"\d+\t{VENUE}\t{TWITTER_TIME}\t-?\d+",
        separator="\t",
        header=(USER_ID, ITEM_ID, TIMESTAMP, "timezone_minutes"),
        limit="Times are UTC.",
    ),
    Layout(
        "Foursquare venues",
        line=rf"{VENUE}\t{NUMBER}\t{NUMBER}\t[^\t]*\t[A-Z]{{2}}",
        separator="\t",
        header=(ITEM_ID, LAT, LON, "category", "country"),
        reshape=lambda table: table.with_columns(pl.lit(None, pl.String).alias(TITLE)),
        limit="Venues have no names.",
    ),
    Layout(
        "SASRec's pairs of user and item",  # https://github.com/kang205/SASRec
        line=r"\d+ \d+",
        separator=" ",
        header=(USER_ID, ITEM_ID),
        order_only=True,
        limit=ORDER,
    ),
)
HISTORIES = Layout(
    "S3-Rec's histories",  # https://github.com/aHuiWang/CIKM2020-S3Rec
    rows=histories,
    order_only=True,
    limit="It has no times, only the order of each history.",
)
KEYED_HISTORIES = Layout(
    "LC-Rec's histories",  # https://github.com/RUCAIBox/LC-Rec; also MiniOneRec
    rows=keyed_histories,
    order_only=True,
    limit="It has no times, only the order of each history.",
)
KEYED_ITEMS = Layout("LC-Rec's items", rows=keyed_items)
COLUMNS = Layout("a table by columns, as pandas writes it", rows=columns)
# Names of columns, which are no ids of users or items.
COLUMN = (
    r"(?i)(?:user|item|product|movie|business|parent)?[_ ]?(?:id|asin)|user|item|time(?:stamp)?|rating|title|name|price"
)


def of_lines(file_name: str, lines: Sequence[str]) -> Layout | None:
    """Layout of a text file, by its name and first lines.

    Args:
        file_name: Name without folder and without the ending of a compression.
        lines: At most the first 20 lines, without line ends; at least one.

    Returns:
        The layout, or None for a file that is not known.
    """
    found = next((layout for layout in LAYOUTS if layout.fits_lines(file_name, lines)), None)
    if found is not None:
        return found
    if _are_histories(file_name, lines):
        return HISTORIES
    key, value = first_entry(lines) if file_name.endswith(".json") else ("", None)
    if not isinstance(value, list | dict):
        return None
    if re.fullmatch(COLUMN, key):
        return COLUMNS
    return KEYED_HISTORIES if isinstance(value, list) else KEYED_ITEMS


def _are_histories(file_name: str, lines: Sequence[str]) -> bool:
    """True for lines of numbers of which each begins with another user and none ends with a unix time."""
    rows = [line.split() for line in lines if line.strip()]
    if file_name.endswith((".csv", ".tsv", ".json")) or any("\t" in line for line in lines) or max(map(len, rows)) < 3:
        return False
    are_numbers = all(cell.isdecimal() for row in rows for cell in row)
    users = {row[0] for row in rows}
    return are_numbers and len(users) == len(rows) and not all(len(row[-1]) > 8 for row in rows)
