"""Public tables with a header, JSON keys or a schema, known by the names of their columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.intake.public.by_line import movies
from llmrec.data.intake.public.layout import Layout
from llmrec.data.intake.public.shapes import pairs, renamed

TYPED = r":(?:token|float)(?:_seq)?$"
RECBOLE_NAMES = {"class": "genres", "release_year": "year"}  # of MovieLens, under the names that make up `text`
TITLES = ("title", "name", "movie_title", "item_title", "item_name", "business_name", "product_name", "artist_name")
PROSE = ("text", "description", "overview", "summary", "abstract", "plot")  # sequences of words that stay text
NO_TIMES = "It has no times, only the order of each history."


def businesses(table: pl.DataFrame) -> pl.DataFrame:
    """Businesses of Yelp, whose categories are one text with commas."""
    if table.schema["categories"] == pl.String:
        table = table.with_columns(pl.col("categories").str.split(", "))
    return renamed(table, {"name": "title", "latitude": LAT, "longitude": LON})


def places(table: pl.DataFrame) -> pl.DataFrame:
    """Check-ins of Foursquare with a header."""
    return renamed(table, {"venueCategory": "category", "latitude": LAT, "longitude": LON})


def games(table: pl.DataFrame) -> pl.DataFrame:
    """Games of Steam: two of them have no id, and some only one of `app_name` and `title`."""
    names = [name for name in ("app_name", "title") if name in table.columns]
    named = table.with_columns(pl.coalesce(names).alias("title"))
    return named.drop("app_name", strict=False).filter(pl.col("id").is_not_null())


def products(table: pl.DataFrame) -> pl.DataFrame:
    """Products of Amazon 2014 and 2018, whose lists have names in the singular, and which may lack a title."""
    table = renamed(table, {"feature": "features", "main_cat": "main_category"})
    return table if "title" in table.columns else table.with_columns(pl.lit(None, pl.String).alias("title"))


LAYOUTS = (
    Layout(
        "MovieLens ratings",  # https://files.grouplens.org/datasets/movielens/ml-25m-README.html
        has=frozenset({"userId", "movieId", "rating", "timestamp"}),
        columns={USER_ID: "userId", ITEM_ID: "movieId", TIMESTAMP: "timestamp", WEIGHT: "rating"},
    ),
    Layout(
        "MovieLens movies",
        has=frozenset({"movieId", "title", "genres"}),
        columns={ITEM_ID: "movieId", TITLE: "title"},
        reshape=movies,
    ),
    Layout(
        "Amazon-2023 reviews",  # https://amazon-reviews-2023.github.io
        has=frozenset({"user_id", "parent_asin", "rating", "timestamp"}),
        keep=("user_id", "parent_asin", "timestamp", "rating"),
        columns={USER_ID: "user_id", ITEM_ID: "parent_asin", TIMESTAMP: "timestamp", WEIGHT: "rating"},
        limit="Items are parent_asin; --item-column asin tells variants apart. Words and images are left out.",
    ),
    Layout(
        "Amazon-2023 items",
        has=frozenset({"parent_asin", "main_category", "title"}),
        keep=(
            *(
                "parent_asin",
                "title",
                "subtitle",
                "main_category",
                "categories",
                "store",
                "author",
                "price",
                "features",
            ),
            *("description", "average_rating", "rating_number"),
        ),
        columns={ITEM_ID: "parent_asin", TITLE: "title"},
        limit="Images, videos and details are left out.",
    ),
    Layout(
        "Amazon-2014 or 2018 reviews",  # https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon
        has=frozenset({"reviewerID", "asin", "overall", "unixReviewTime"}),
        keep=("reviewerID", "asin", "unixReviewTime", "overall"),
        columns={USER_ID: "reviewerID", ITEM_ID: "asin", TIMESTAMP: "unixReviewTime", WEIGHT: "overall"},
        limit="Times are days. The words of reviews are left out.",
    ),
    *(
        Layout(
            f"Amazon-{year} items",
            has=frozenset({"asin", address}),
            keep=(
                *("asin", "title", "brand", "price", "categories", "category", "main_cat", "feature", "description"),
            ),
            columns={ITEM_ID: "asin", TITLE: "title"},
            reshape=products,
            limit="Images, ranks and related products are left out.",
        )
        for year, address in ((2014, "imUrl"), (2014, "salesRank"), (2018, "also_buy"), (2018, "imageURL"))
    ),
    Layout(
        "Yelp reviews",  # https://www.yelp.com/dataset/documentation/main
        has=frozenset({"user_id", "business_id", "stars", "date"}),
        keep=("user_id", "business_id", "stars", "date"),
        columns={USER_ID: "user_id", ITEM_ID: "business_id", TIMESTAMP: "date", WEIGHT: "stars"},
        limit="The words and votes of reviews are left out.",
    ),
    Layout(
        "Yelp tips",
        has=frozenset({"user_id", "business_id", "compliment_count", "date"}),
        keep=("user_id", "business_id", "date"),
        columns={USER_ID: "user_id", ITEM_ID: "business_id", TIMESTAMP: "date"},
    ),
    Layout(
        "Yelp businesses",
        has=frozenset({"business_id", "name", "categories", "latitude", "longitude"}),
        keep=(
            *("business_id", "name", "categories", "latitude", "longitude", "city", "state", "postal_code", "stars"),
            *("review_count", "is_open"),
        ),
        columns={ITEM_ID: "business_id", TITLE: "title"},
        reshape=businesses,
        limit="Addresses, attributes and hours are left out.",
    ),
    Layout(
        "Steam reviews",  # https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data
        has=frozenset({"username", "product_id", "date"}),
        keep=("username", "product_id", "date"),
        columns={USER_ID: "username", ITEM_ID: "product_id", TIMESTAMP: "date"},
        limit="Users are user names, because many reviews lack user_id. Times are days. Hours and words are left out.",
    ),
    Layout(
        "Steam games",
        has=frozenset({"app_name", "id"}),
        keep=(
            *("id", "app_name", "title", "genres", "tags", "specs", "developer", "publisher", "price", "release_date"),
            *("early_access", "sentiment", "metascore"),
        ),
        columns={ITEM_ID: "id", TITLE: "title"},
        reshape=games,
        limit="Addresses are left out, and games without an id.",
    ),
    Layout(
        "LastFM artists played",  # https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-readme.txt
        has=frozenset({"userID", "artistID", "weight"}),
        columns={USER_ID: "userID", ITEM_ID: "artistID", WEIGHT: "weight"},
        order_only=True,
        limit="It has no times, and its order is not that of the plays.",
    ),
    Layout(
        "LastFM artists tagged",
        has=frozenset({"userID", "artistID", "tagID", "timestamp"}),
        columns={USER_ID: "userID", ITEM_ID: "artistID", TIMESTAMP: "timestamp"},
        keep=("userID", "artistID", "timestamp"),
        limit="Each tag that a user gives is an interaction; times are days.",
    ),
    Layout(
        "LastFM artists",
        has=frozenset({"id", "name", "url", "pictureURL"}),
        keep=("id", "name"),
        columns={ITEM_ID: "id", TITLE: "name"},
        limit="Addresses are left out.",
    ),
    Layout(
        "Foursquare check-ins",  # https://www.kaggle.com/datasets/chetanism/foursquare-nyc-and-tokyo-checkin-dataset
        has=frozenset({"userId", "venueId", "venueCategory", "utcTimestamp"}),
        columns={USER_ID: "userId", ITEM_ID: "venueId", TIMESTAMP: "utcTimestamp"},
        reshape=places,
        limit="Times are UTC.",
    ),
    Layout(
        "GNPR-SID's check-ins",  # https://github.com/wds1996/GNPR-SID
        has=frozenset({"Uid", "Pid", "Time"}),
        columns={USER_ID: "Uid", ITEM_ID: "Pid", TIMESTAMP: "Time"},
    ),
    *(
        Layout(
            "MiniOneRec's pairs of history and next item",  # https://github.com/AkaliKong/MiniOneRec
            has=frozenset({"user_id", "history_item_id", "item_id", *times}),
            keep=("user_id", "history_item_id", "item_id", "history_item_title", "item_title", *times),
            reshape=lambda table: pairs(table, "history_item_id", "item_id"),
            order_only=not times,
            limit="The pairs of a user become one history." + ("" if times else f" {NO_TIMES}"),
        )
        for times in (("history_timestamp", "timestamp"), ())
    ),
)


def of_names(names: Sequence[str]) -> Layout | None:
    """Layout of a table, by the names of its columns.

    Args:
        names: Names of the columns, blanks around them removed.

    Returns:
        The layout, or None for a table that is not known.
    """
    if names and all(re.search(TYPED, name) for name in names):
        return _recbole(names)
    return next((layout for layout in LAYOUTS if layout.fits_names(names)), None)


def _recbole(names: Sequence[str]) -> Layout:
    """Layout of RecBole's atomic files, whose header has types (https://recbole.io/atomic_files.html)."""
    bare = {name: re.sub(TYPED, "", name) for name in names}
    if "item_id_list" in bare.values():
        return Layout(
            "RecBole's histories",
            rename=bare,
            reshape=lambda table: pairs(table, "item_id_list", "item_id"),
            order_only=True,
            limit=f"The rows of a user become one history. {NO_TIMES}",
        )
    title = next((name for name in TITLES if name in bare.values()), TITLE)
    taken = set(bare.values())
    ours = {short: name for short, name in RECBOLE_NAMES.items() if name not in taken}
    shown = {name: ours.get(short, short) for name, short in bare.items()}
    lists = [shown[name] for name in names if name.endswith(":token_seq") and bare[name] not in (title, *PROSE)]
    users = next((name for name in ("user_id", "uid", "session_id") if name in taken), USER_ID)
    return Layout(
        "RecBole's atomic file",
        rename=shown,
        columns={USER_ID: users, WEIGHT: "rating", TITLE: title},
        reshape=(lambda table: table.with_columns(_sequences(table[name]) for name in lists)) if lists else None,
    )


def _sequences(cells: pl.Series) -> pl.Series:
    """Lists of a column of tokens, which stand between bars, commas, or blanks if there are neither."""
    separator = next((sign for sign in ("|", ", ") if cells.str.contains(sign, literal=True).any()), " ")
    return cells.str.split(separator).list.eval(pl.element().str.strip_chars("'\" "))
