"""Items that all users may be recommended: by conditions on the columns of a catalogue, and without those barred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmrec.configs.recommend import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import UNKNOWN_ROW
from llmrec.data.requests.item_lists import Unknown, find_rows
from llmrec.sid.table import SidTable

REMEDY = "--unknown skip leaves unknown items out."


def local_table(model: str) -> SidTable | None:
    """SID table of a checkpoint on this machine, by which requests are checked before the weights are read."""
    try:
        return SidTable.load(model)
    except ValueError:  # it is on the Hub, or whoever loads the whole checkpoint says what is wrong
        return None


def permitted_by(
    config: RecommendConfig, table: SidTable, catalog: Catalog | None
) -> tuple[list[str] | None, list[str]]:
    """Find the item_ids that everybody may get by --where and --exclude.

    Args:
        config: Options of `llmrec recommend`.
        table: Knows the items.
        catalog: Columns of the conditions.

    Returns:
        item_ids, None for all of them; and those of --exclude that are unknown.

    Raises:
        ValueError: If a condition is malformed, an item of --exclude is unknown and is not to be skipped, or no item is
            left.
    """
    matching = None if config.where is None else find_matching(config.where, catalog)
    excluded, strangers = read_excluded(config.exclude, table, config.unknown)
    return permitted_items(table, matching, excluded), strangers


def find_matching(where: Sequence[str], catalog: Catalog | None) -> list[str]:
    """Find the item_ids that meet all conditions, at least one.

    Raises:
        ValueError: If there is no condition or no catalogue, a condition is malformed, or no item meets all of them.
    """
    if not where:
        raise ValueError("--where is empty; give conditions such as 'price <= 20', or leave it out.")
    if catalog is None:
        raise ValueError("--where needs --catalog, the `llmrec prepare` directory that has the columns.")
    matching = catalog.where(*where)
    if not matching:
        alone = "; ".join(f"'{condition}' is met by {len(catalog.where(condition))}" for condition in where)
        raise ValueError(
            f"none of the {catalog.num_items} items of '{catalog.source}' meets --where: {alone}. Loosen a condition."
        )
    return matching


def read_excluded(
    entries: Sequence[str] | None, table: SidTable, unknown: Unknown, lists: Mapping[str, object] | None = None
) -> tuple[list[str], list[str]]:
    """Read --exclude, and check that all item_ids are known, if they must be.

    Args:
        entries: item_ids, and files with one item_id per line.
        table: Knows the items.
        unknown: `error` refuses unknown items; `skip` leaves them out.
        lists: Further lists that are checked with them, by their names for messages.

    Returns:
        item_ids that nobody gets, and those of `entries` that are unknown.

    Raises:
        ValueError: If an item_id is unknown and is not to be skipped, or a file is not UTF-8.
    """
    excluded = excluded_items(entries, table.row_of)
    found = find_rows({"--exclude": excluded, **(lists or {})}, table.row_of, unknown, remedy=REMEDY)
    return table.item_ids.of(found[0][0]), found[0][1]


def _known(item_ids: Sequence[str], table: SidTable) -> list[str]:
    return [item_ids[place] for place in np.flatnonzero(table.row_of.rows(item_ids) != UNKNOWN_ROW).tolist()]


def excluded_items(entries: Sequence[str] | None, known: Mapping[str, int]) -> list[str]:
    """Read the entries of --exclude: known item_ids, files with one item_id per line, or else unknown item_ids.

    Raises:
        ValueError: If a file is not UTF-8.
    """
    found = []
    for entry in entries or ():
        if entry in known or not Path(entry).is_file():
            found.append(entry)
            continue
        try:
            lines = Path(entry).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"--exclude '{entry}' is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
        found += [line.strip() for line in lines if line.strip()]
    return found


def permitted_items(table: SidTable, matching: list[str] | None, excluded: Sequence[str]) -> list[str] | None:
    """Find the item_ids that everybody may get; None if that is all of them.

    Raises:
        ValueError: If there is none.
    """
    if matching is None and not excluded:
        return None
    barred = set(excluded)
    candidates = table.item_ids if matching is None else _known(matching, table)
    permitted = [item_id for item_id in candidates if item_id not in barred]
    if not permitted:
        cause = "--exclude names all items" if candidates else "the model knows none of the items that meet --where"
        raise ValueError(f"{cause}, so that nothing can be recommended.")
    return permitted
