"""Facts of the data report that need no model: the ids, times, repeats, users, items and fields of a dataset."""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import ITEM_ID, TIMESTAMP, USER_ID
from llmrec.data.public_formats import Dataset
from llmrec.data.report.behaviour import behaviour_facts, coded
from llmrec.data.report.fields import field_facts
from llmrec.data.report.ids import look_alikes, names_of_nothing
from llmrec.data.report.times import tie_facts, time_facts
from llmrec.data.split import different
from llmrec.runtime.manifest import JsonObject

NAMED = {"users": USER_ID, "items": ITEM_ID}


def data_facts(dataset: Dataset, log: pl.DataFrame, items: pl.DataFrame) -> JsonObject:
    """Facts about the files as they were read, and about what was kept of them.

    Args:
        dataset: As it was read.
        log: Interactions that were kept, sorted by user and time; at least one.
        items: Items that were kept.

    Returns:
        ids (of users and of items, as read), times and ties (None without times), behaviour and fields of what was
        kept.
    """
    compact = coded(log)
    return {
        "ids": {kind: id_facts(dataset, column) for kind, column in NAMED.items()},
        "times": None if dataset.order_only else time_facts(log[TIMESTAMP]),
        "ties": None if dataset.order_only else tie_facts(compact),
        "behaviour": behaviour_facts(compact),
        "fields": field_facts(items),
    }


def id_facts(dataset: Dataset, column: str) -> JsonObject:
    """Ids that look alike, and ids such as `nan` with the number of their interactions.

    Args:
        dataset: As it was read.
        column: user_id or item_id.

    Returns:
        look_alikes: as `ids.look_alikes` says; nothing: id -> interactions.
    """
    ids = dataset.interactions[column]
    used = different(ids)
    listed = [dataset.items[ITEM_ID]] if column == ITEM_ID else []
    every = pl.concat([used, *listed]).unique()
    nothing = names_of_nothing(every)
    rows = {name: int((ids == name).sum()) if name in used else 0 for name in nothing}
    return {"look_alikes": look_alikes(every.sort()), "nothing": rows}
