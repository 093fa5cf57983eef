"""Options of `llmrec prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import StageConfig, option


@dataclass(kw_only=True)
class PrepareConfig(StageConfig):
    """Read a dataset, filter it, split it and write the catalogue."""

    dataset: str | None = option(
        "Known dataset: movietweetings, amazon14-beauty, amazon18-games, minionerec-industrial, foursquare-nyc, "
        "simulated; or leave out.",
        None,
    )
    interactions: str | None = option("CSV or parquet file of interactions, instead of `dataset`.", None)
    items: str | None = option("CSV or parquet file of items that goes with `interactions`.", None)
    user_column: str = option("Column of the user in `interactions`.", "user_id")
    item_column: str = option("Column of the item in `interactions` and `items`.", "item_id")
    timestamp_column: str = option("Column of the time in `interactions`.", "timestamp")
    title_column: str = option("Column of the title in `items`.", "title")
    k_core: int = option("Drop users and items with fewer interactions, repeatedly; 0 keeps all.", 5, least=0)
    split: Literal["leave_one_out", "temporal", "published"] = option(
        "leave_one_out: last item of a user is test, last but one valid. temporal: 8:1:1 of all interactions by time. "
        "published: the rows that came with the dataset (with k_core 0).",
        "leave_one_out",
    )
    max_history: int = option("Items kept of a validation or test history, the latest ones.", 50, least=1)
    num_users: int | None = option(
        "Keep a random sample of users of the k-core, and the items they have (all items where k_core is 0).",
        None,
        least=1,
    )
    simulated_users: int = option("Users of the dataset 'simulated'.", 2000, least=1)
    simulated_items: int = option("Items of the dataset 'simulated'.", 500, least=1)
