"""Unknown items: those that a log names and its item file lacks.

Public logs name items whose title and fields nobody collected. `read_tables` refuses them, because ids that are written
in two forms look the same to a join; `--unknown-items` keeps them without fields, or drops their interactions.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from llmrec.configs import PrepareConfig
from llmrec.data.columns import ITEM_ID, TEXT
from llmrec.data.filters.append import Published
from llmrec.data.public_formats import Dataset
from llmrec.data.report.ids import known_look_alike
from llmrec.data.report.steps import Steps
from llmrec.data.report.verdicts import shown
from llmrec.data.split import different
from llmrec.runtime.manifest import JsonObject


def settle_unknown_items(
    config: PrepareConfig, dataset: Dataset, published: Published | None, steps: Steps
) -> tuple[Dataset, JsonObject]:
    """Add the unknown items of a log to its items, or drop their interactions, and count them.

    Args:
        config: Options of the stage.
        dataset: As it was read, its interactions in sequence.
        published: Catalogue that it is appended to, whose items are known.
        steps: Record that takes one step if there are unknown items.

    Returns:
        The dataset, without unknown items in its log; and for the report their number (`items`), that of their
        `interactions`, whether these are `dropped`, and what `known_look_alike` says of them (`look_alike`).

    Raises:
        ValueError: If no interaction is left.
    """
    if config.unknown_items == "error":  # own files have none then, and known datasets stay as they were published
        return dataset, {"items": 0, "interactions": 0, "dropped": False, "look_alike": None}
    items, log = dataset.items, dataset.interactions
    known = pl.concat([items[ITEM_ID], published.items[ITEM_ID]]).unique() if published else items[ITEM_ID]
    ids = different(log[ITEM_ID])
    ids = ids.filter(~ids.is_in(known.implode()))
    is_unknown = log[ITEM_ID].is_in(ids.cast(log[ITEM_ID].dtype).implode())
    is_dropped = config.unknown_items == "drop" and not ids.is_empty()
    alike = known_look_alike(ids, known)
    facts = {"items": len(ids), "interactions": int(is_unknown.sum()), "dropped": is_dropped, "look_alike": alike}
    if ids.is_empty():
        return dataset, facts
    note = _note(config, facts, ids[0], log.height, published)
    if is_dropped:
        kept = log.filter(~is_unknown)
        if kept.is_empty():
            remedy = "Write ids in one form in both files; --item-column and --item-file-column name their columns."
            raise ValueError(f"{note} Nothing is left. {f'{alike}. ' if alike else ''}{remedy}")
        log = steps.note(f"{len(ids):,} unknown items dropped", kept)
    else:
        added = pl.concat([items, pl.DataFrame([ids])], how="diagonal")
        items = added.with_columns(pl.col(TEXT).fill_null(""))
        steps.note(f"{len(ids):,} unknown items kept", log)
    return replace(dataset, items=items, interactions=log, notes=(*dataset.notes, note)), facts


def _note(config: PrepareConfig, facts: JsonObject, example: str, rows: int, published: Published | None) -> str:
    """Sentences that count the unknown items and say what becomes of them."""
    place = f"neither in {config.items} nor in '{published.source}'" if published else f"not in {config.items}"
    fate = "are dropped." if facts["dropped"] else "are kept; these items have no title and no text."
    return (
        f"Items of {config.interactions} that are {place}: {facts['items']:,}, such as {shown(example)}. "
        f"Their {facts['interactions']:,} of {rows:,} interactions ({facts['interactions'] / rows:.1%}) {fate}"
    )
