"""Appending to a catalogue: new interactions and items join those of a finished one, whose item rows stay.

Semantic IDs, views and models are in the order of the item rows, so the items of the catalogue come first, in their
order, and new ones follow. New items are kept however few interactions they have: k-core would drop each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from llmrec.data.columns import ITEM_ID, TIMESTAMP, USER_ID
from llmrec.data.public_formats import Dataset
from llmrec.data.report.fields import missing
from llmrec.data.report.times import unit_of
from llmrec.runtime.manifest import JsonObject, read_manifest, verify

SETTLED = ("split", "max_history", "k_core")  # options of `prepare` that a catalogue has decided already


@dataclass(frozen=True)
class Published:
    """A finished catalogue that is appended to.

    Attributes:
        source: Its directory.
        items: Content of items.parquet.
        interactions: Content of interactions.parquet.
        order_only: True if its times are positions in histories.
        config: Options that it was prepared with; empty if it was written by other means.
    """

    source: str
    items: pl.DataFrame
    interactions: pl.DataFrame
    order_only: bool
    config: JsonObject

    @classmethod
    def load(cls, path: str | Path) -> Published:
        """Read a catalogue directory.

        Raises:
            ValueError: If it is no whole catalogue, has no interactions.parquet, or a published split.
        """
        directory = verify(path, "prepare")
        log = directory / "interactions.parquet"
        if not log.is_file():
            raise ValueError(
                f"'{path}' has no interactions.parquet, which new interactions would join; prepare it anew."
            )
        manifest = read_manifest(directory)
        if manifest["config"].get("split") == "published":
            raise ValueError(f"'{path}' has a published split, which new interactions would change; prepare it anew.")
        order_only = manifest["counts"].get("report", {"times": 0})["times"] is None
        items = pl.read_parquet(directory / "items.parquet")
        chosen = {name: value for name, value in manifest["counts"].items() if name == "k_core"}  # if by the data
        return cls(str(path), items, pl.read_parquet(log), order_only, manifest["config"] | chosen)

    @property
    def num_items(self) -> int:
        """Number of items, whose rows come first."""
        return self.items.height

    def join(self, new: Dataset) -> Dataset:
        """Put the items and interactions of new files behind those of the catalogue.

        Args:
            new: As they were read. Items that the catalogue has already take the values that are given anew.

        Returns:
            All items, in the order of the catalogue and then of the files, and all interactions.

        Raises:
            ValueError: If times or columns of the files do not go together with those of the catalogue.
        """
        self._check_times(new)
        log = new.interactions
        if self.order_only and log.height:
            last = self.interactions.group_by(USER_ID).agg((pl.col(TIMESTAMP).max() + 1).alias("next"))
            later = pl.col(TIMESTAMP) + pl.col("next").fill_null(0)
            log = log.join(last, on=USER_ID, how="left", maintain_order="left").with_columns(later).drop("next")
        items = joined_items(self.items, new.items, self.source)
        # Whole seconds stay integers; "relaxed" is for a log of fractions.
        interactions = pl.concat([self.interactions, log.select(self.interactions.columns)], how="vertical_relaxed")
        return replace(new, items=items, interactions=interactions, order_only=self.order_only)

    def _check_times(self, new: Dataset) -> None:
        if not new.interactions.height:
            return
        if self.order_only != new.order_only:
            one, other = ("no times", "times") if self.order_only else ("times", "none")
            remedy = "give" if self.order_only else "leave out"
            raise ValueError(f"'{self.source}' has {one}, the new log has {other}; {remedy} --order-only.")
        units = [unit_of(log[TIMESTAMP]) or "other numbers" for log in (self.interactions, new.interactions)]
        if not self.order_only and units[0] != units[1]:
            raise ValueError(
                f"the times of '{self.source}' are {units[0]}, those of the new log are {units[1]}, so their order "
                "would be wrong. Convert those of the new log."
            )


def joined_items(old: pl.DataFrame, new: pl.DataFrame, source: str) -> pl.DataFrame:
    """Items of a catalogue with the values that are given anew, then the new items; both keep their order.

    Raises:
        ValueError: If a column holds another type in both.
    """
    new = new.with_columns(_typed(new[name], old.schema[name], source) for name in new.columns if name in old.columns)
    again = old.select(ITEM_ID).join(new, on=ITEM_ID, how="left", maintain_order="left")
    columns = [ITEM_ID, *dict.fromkeys(name for name in (*old.columns, *new.columns) if name != ITEM_ID)]
    empty = pl.repeat(None, old.height, eager=True)
    updated = []
    for name in columns:
        before = old[name] if name in old.columns else empty.cast(new.schema[name])
        after = again[name] if name in again.columns else empty.cast(before.dtype)
        if before.dtype != after.dtype:  # two kinds of numbers
            whole = before.dtype.is_integer() and after.dtype.is_integer()
            before, after = (each.cast(pl.Int64 if whole else pl.Float64) for each in (before, after))
        updated.append(before.zip_with(missing(after), after).alias(name))
    added = new.join(old, on=ITEM_ID, how="anti", maintain_order="left")
    return pl.concat([pl.DataFrame(updated), added], how="diagonal_relaxed")


def _typed(column: pl.Series, dtype: pl.DataType, source: str) -> pl.Series:
    """Column of new items in the type that the catalogue has; numbers may be of any kind."""
    both_numbers = column.dtype.is_numeric() and dtype.is_numeric()
    if column.dtype == dtype or both_numbers:
        return column
    # What a text means is judged by the cells of its column, which may be few: without a list, none is a list.
    if isinstance(dtype, pl.List) and dtype.inner == column.dtype == pl.String:
        return pl.DataFrame([column]).select(pl.when(pl.first().is_not_null()).then(pl.concat_list(pl.first())))[:, 0]
    if missing(column).all():
        return pl.repeat(None, len(column), eager=True).cast(dtype).alias(column.name)
    raise ValueError(
        f"column {column.name!r} of the new items holds {column.dtype}, that of '{source}' holds {dtype}; write it in "
        "the form that the catalogue was prepared from."
    )
