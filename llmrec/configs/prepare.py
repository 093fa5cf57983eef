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
    interactions: str | None = option("CSV or parquet file of your own interactions, instead of `dataset`.", None)
    items: str | None = option("CSV or parquet file of the items in `interactions`.", None)
    user_column: str = option("Name of the user column in `interactions`.", "user_id")
    item_column: str = option("Name of the item column in `interactions` and `items`.", "item_id")
    timestamp_column: str = option("Name of the time column in `interactions`.", "timestamp")
    title_column: str = option("Name of the title column in `items`.", "title")
    k_core: int = option(
        "Drop users and items with fewer interactions than this, again and again; 0 keeps all.", 5, least=0
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
