"""Columns of the items in a log without an item file: those that have one value for each item.

Gowalla, LastFM and Foursquare repeat the title or the place of an item in every row. A column such as the title of a
review bears the same name, so the values decide: a column belongs to the items if hardly any item has two values.
Coordinates always do, and so does the title that a user names.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TEXT, TIMESTAMP, TITLE
from llmrec.data.intake.table import Table
from llmrec.data.public_formats import TEXT_FIELDS

SAMPLE = 100_000  # rows in which a column is judged before it is read in full
MOST = 0.9  # share of the repeated items that need one value, where the name says much; the others were renamed
REPEATS = 10  # repeated items that another column needs, so that one value for each is no accident


def add_item_columns(log: Table, columns: Sequence[str], title: str | None, is_sure: bool) -> dict[str, str]:
    """Read the columns of the items into the frame of a log.

    Args:
        log: Log whose ids are converted.
        columns: Columns of the file that have no other use. Those that bear a name of llmrec's, but were not chosen for
            it, are left out.
        title: The one that holds titles, if there is one.
        is_sure: True if the user named it.

    Returns:
        Column of the file -> name under which it was added.
    """
    found = [name for name in columns if name not in log.frame.columns and (name != TITLE or title in (None, TITLE))]
    needed = dict.fromkeys((TEXT, *TEXT_FIELDS), MOST) | {LAT: 0.0, LON: 0.0}
    if title is not None:
        needed[title] = 0.0 if is_sure else MOST
    for limit in (SAMPLE, None):
        rows = log.rows.read(found, limit) if found else pl.DataFrame()
        ids = log.frame[ITEM_ID].head(rows.height)
        found = [name for name in found if _belongs(ids, rows[name], needed.get(name, 1.0))]
        if log.frame.height <= SAMPLE:
            break
    names = {name: TITLE if name == title else name for name in found}
    log.frame = log.frame.with_columns(rows[name].alias(new) for name, new in names.items())
    return names


def _belongs(ids: pl.Series, cells: pl.Series, needed: float) -> bool:
    """True if the needed share of the repeated items has one value; below 1, the name says that it is of the items."""
    if isinstance(cells.dtype, pl.Struct | pl.Map | pl.Object):
        return False
    pairs = pl.DataFrame({ITEM_ID: ids, "cell": cells}).drop_nulls()
    counts = pairs.group_by(ITEM_ID).agg(pl.len().alias("rows"), pl.col("cell").n_unique().alias("values"))
    repeated = counts.filter(pl.col("rows") > 1)["values"]
    is_told_apart = needed < 1 or (len(repeated) >= REPEATS and pairs["cell"].n_unique() > 1)
    return len(pairs) > 0 and is_told_apart and (repeated == 1).sum() >= needed * len(repeated)


def items_of_log(log: Table, names: Sequence[str], order_only: bool) -> pl.DataFrame:
    """Collect the items of a log, in the order in which they appear, with the latest value of each column.

    Args:
        log: Log with these columns.
        names: Columns of the items.
        order_only: True if times do not compare between users; then the last value in the file is the latest.
    """
    items = log.frame.select(pl.col(ITEM_ID).unique(maintain_order=True))
    for name in names:
        given = log.frame.select(ITEM_ID, TIMESTAMP, name).drop_nulls()
        place = pl.len() - 1 if order_only else pl.len() - 1 - pl.col(TIMESTAMP).reverse().arg_max()
        latest = given.group_by(ITEM_ID).agg(pl.col(name).get(place), (pl.col(name).n_unique() > 1).alias("several"))
        if latest["several"].any():
            several = latest["several"].sum()
            log.note(f"{several} items have several values of {name}; the latest one is taken.")
        items = items.join(latest.drop("several"), on=ITEM_ID, how="left", maintain_order="left")
    return items if TITLE in names else items.with_columns(pl.lit(None, pl.String).alias(TITLE))
