"""Options of `llmrec prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.options import Config, StageConfig, option

SIZE_OF_SIMULATED = "removed: the size of simulated data is part of its name, such as `dataset: simulated:2000x500`"


@dataclass(kw_only=True)
class PrepareConfig(StageConfig, Config):
    """Read a dataset, filter it, split it and write the catalogue."""

    renamed: ClassVar = {"simulated_users": SIZE_OF_SIMULATED, "simulated_items": SIZE_OF_SIMULATED}

    dataset: str | None = option(
        "Known dataset to read: movietweetings, amazon14-beauty, amazon18-games, minionerec-industrial, "
        "foursquare-nyc, or simulated (simulated:2000x500 is 2000 users and 500 items). Leave it out to read your own "
        "`interactions`.",
        None,
    )
    interactions: str | None = option(
        "File of your own interactions, instead of `dataset`, or a directory of its parts: CSV or other delimited "
        "text, JSON lines (text also as .gz, .xz, .zst or .bz2), or parquet.",
        None,
    )
    items: str | None = option(
        "File of the items that `interactions` name, with a title for each; the same kinds of files, or a directory.",
        None,
    )
    append_to: str | None = option(
        "Catalogue that `interactions`, `items` or both are added to. Its items keep their rows; new items follow and "
        "are kept, however few interactions they have. k_core counts for new users only.",
        None,
    )
    user_column: str | None = option(
        "Name of the user column in `interactions`; by default `user_id`, or another common name if there is one.", None
    )
    item_column: str | None = option(
        "Name of the item column in `interactions` and `items`; by default `item_id`, or another common name.", None
    )
    item_file_column: str | None = option("Name of the item column in `items`, if it has another name there.", None)
    timestamp_column: str | None = option(
        "Name of the time column in `interactions`; by default `timestamp`, or another common name.", None
    )
    title_column: str | None = option(
        "Name of the title column in `items`, or in `interactions` without `items`; by default `title`, or another "
        "common name.",
        None,
    )
    weight_column: str | None = option(
        "Name of a column of numbers in `interactions`, such as a rating; by default `weight`, if there is one.", None
    )
    min_weight: float | None = option(
        "Drop interactions with a smaller weight, such as ratings below 4; all are kept by default.", None
    )
    order_only: bool = option(
        "The rows of each user in `interactions` are in order, and times are not read: the position is the time.", False
    )
    separator: str | None = option(
        "Text between the cells of delimited text; by default it is found from the first lines.", None
    )
    k_core: int | None = option(
        "Drop users and items with fewer interactions than this, again and again; 0 keeps all, and null takes the "
        "largest up to 5 that keeps half of the users with three interactions or more.",
        5,
        least=0,
    )
    unknown_items: Literal["error", "keep", "drop"] = option(
        "Items that `interactions` name and `items` lacks. error: they are refused, because their ids are often those "
        "of other items in another form. keep: they join the catalogue without title and text. drop: their "
        "interactions are left out.",
        "error",
    )
    duplicates: Literal["drop", "keep"] = option(
        "Rows that repeat the user, item and time of an earlier row. drop: they are counted and dropped, because logs "
        "are often written or joined twice. keep: each counts as an event of its own.",
        "drop",
    )
    split: Literal["leave_one_out", "temporal", "published"] = option(
        "leave_one_out: the last item of each user is its test target, the last but one its validation target. "
        "temporal: all interactions are split 8:1:1 by time. "
        "published: the split that came with the dataset is used (with k_core 0).",
        "leave_one_out",
    )
    max_history: int = option("Keep at most this many latest items of a validation or test history.", 50, least=1)
    num_users: int | None = option(
        "Keep a random sample of this many users of the k-core, and the items they have (all items if k_core is 0).",
        None,
        least=1,
    )
