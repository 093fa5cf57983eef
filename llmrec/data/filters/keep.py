"""Filters of `prepare`: unknown items, weight, exact repeats, k-core, sample of users; the report counts each step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from llmrec.configs import PrepareConfig
from llmrec.data import split as splits
from llmrec.data.columns import ITEM_ID, USER_ID, WEIGHT
from llmrec.data.filters.append import Published
from llmrec.data.filters.unknown_items import settle_unknown_items
from llmrec.data.public_formats import Dataset
from llmrec.data.report.steps import ROUND, Steps
from llmrec.runtime.console import say
from llmrec.runtime.manifest import JsonObject


def keep(
    config: PrepareConfig, dataset: Dataset, published: Published | None = None
) -> tuple[Dataset, pl.DataFrame, JsonObject]:
    """Apply the filters to the log of a dataset, after it has joined a catalogue if there is one.

    Args:
        config: Options of the stage.
        dataset: As it was read.
        published: Catalogue that it is appended to.

    Returns:
        The dataset before its filters, with all of the catalogue's; the interactions that are kept, in sequence; and
        the beginning of the report: `k_core`, `steps`, `unknown_items` and `exact_repeats`.

    Raises:
        ValueError: If nothing is left, or the dataset does not go together with the catalogue.
    """
    steps = Steps()
    dataset = replace(dataset, interactions=steps.note("read", splits.in_order(dataset.interactions)))
    dataset, unknown = settle_unknown_items(config, dataset, published, steps)
    log = dataset.interactions
    if config.min_weight is not None:
        log = steps.note(f"weight of at least {config.min_weight:g}", at_least(config.min_weight, log))
    if published:
        dataset = published.join(replace(dataset, interactions=splits.with_texts(log)))
        log = steps.note("joined with the catalogue", splits.in_order(splits.with_codes(dataset.interactions)))
    repeats = splits.exact_repeats(log)
    is_dropped = config.duplicates == "drop" and bool(repeats.any())
    if is_dropped:
        log = steps.note("without exact repeats", log.filter(~repeats))
    k = config.k_core
    if k is None:
        k = splits.suited_k_core(splits.numbers(log[USER_ID]), splits.numbers(log[ITEM_ID]))
    log = core_of_new_users(log, published, k, steps) if published else core(log, k, steps)
    if log.is_empty():
        raise ValueError(f"No user and item have {k} interactions each; lower --k-core.")
    if config.num_users is not None:
        log = steps.note(f"sample of {config.num_users} users", splits.sample_users(log, config.num_users, config.seed))
    counted = {"rows": int(repeats.sum()), "dropped": is_dropped}
    facts = {"k_core": k, "steps": steps.facts(), "unknown_items": unknown, "exact_repeats": counted}
    return dataset, splits.with_positions(log), facts


def at_least(min_weight: float, interactions: pl.DataFrame) -> pl.DataFrame:
    """Drop interactions with a smaller weight, and say how many.

    Raises:
        ValueError: If an interaction has no weight, or none is left.
    """
    unknown = interactions[WEIGHT].null_count()
    if unknown:
        raise ValueError(
            f"{unknown} interactions have no weight, so --min-weight can neither keep nor drop them; fill it in, or "
            "drop these rows."
        )
    kept = interactions.filter(pl.col(WEIGHT) >= min_weight)
    dropped = interactions.height - kept.height
    say(f"Dropped {dropped:,} of {interactions.height:,} interactions, whose weight is below {min_weight:g}.")
    if kept.is_empty():
        raise ValueError(f"No interaction has a weight of at least {min_weight:g}; lower --min-weight.")
    return kept


def core(log: pl.DataFrame, k: int, steps: Steps) -> pl.DataFrame:
    """Keep the k-core of a log, every round counted."""
    rows, users, items = np.arange(log.height), splits.numbers(log[USER_ID]), splits.numbers(log[ITEM_ID])
    for number, left in enumerate(splits.k_core_rounds(users, items, k), start=1):
        rows = left
        steps.note_numbers(f"{k}-core{ROUND}{number}", users[rows], items[rows])
    return log[rows] if len(rows) < log.height else log


def core_of_new_users(log: pl.DataFrame, published: Published, k: int, steps: Steps) -> pl.DataFrame:
    """Keep the users of a catalogue, and new ones with at least k interactions; items are kept in any case."""
    before = published.interactions[USER_ID].unique()
    enough = (pl.len().over(USER_ID) >= k) | pl.col(USER_ID).cast(pl.String).is_in(before.implode())
    kept = log.filter(enough)
    return steps.note(f"new users with {k} or more", kept) if kept.height < log.height else log
