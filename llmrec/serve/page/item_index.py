"""ItemIndex: what a person is told of the items: titles to search, fields to read, and conditions to filter by.

A search reads all titles, which takes 0.1 s at 10^6 of them on a busy core. It knows the items of the checkpoint, since
the model can read no others.

Shapes: N items of the checkpoint.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from polars import selectors

from llmrec.configs.recommend import RankBy
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.data.conditions import matches
from llmrec.data.item_ids import UNKNOWN_ROW, Texts
from llmrec.decoding.paths.forks import code_name
from llmrec.decoding.requests import ItemRequests
from llmrec.recommender import Recommender
from llmrec.sid.codes import EMPTY

MOST_COLUMNS = 20  # that are described
MOST_VALUES = 50  # of a column, that are listed
LONGEST = 200  # characters of a value that is shown
KEPT_FILTERS = 32
QUANTILES = (0.5, 0.9, 0.99)


class ItemIndex:
    """Titles, fields and filters of the items of a checkpoint.

    Args:
        recommender: Knows the items, their semantic IDs and how often each was trained on.
        catalog: Titles and columns; None if there are none.
        pictures: Column with the addresses of pictures; None if there is none.

    Raises:
        ValueError: If the catalogue has no column of that name.
    """

    def __init__(self, recommender: Recommender, catalog: Catalog | None, pictures: str | None = None):
        self.recommender, self.table, self.catalog = recommender, recommender.table, catalog
        self.counts = None if recommender.record is None else recommender.record.train_counts
        self.pictures = pictures
        names = [] if catalog is None else catalog.items.column_names
        if pictures is not None and pictures not in names:
            raise ValueError(f"pictures is '{pictures}', but the catalogue has the columns {names}; name one of them.")
        known = {columns.ITEM_ID, columns.TITLE, columns.TEXT, pictures}
        self.names = [name for name in names if name not in known][:MOST_COLUMNS]
        num_items, ids = self.table.num_items, self.table.item_ids
        self.catalog_rows_N = np.full(num_items, UNKNOWN_ROW) if catalog is None else catalog.row_of.rows(ids)
        self._filters: dict[tuple[tuple[str, ...], int | None], np.ndarray] = {}
        self._titles: pl.Series | None = None
        self._lock = threading.Lock()

    @cached_property
    def _by_popularity(self) -> np.ndarray:
        """(N,) item rows, most training interactions first."""
        record = self.recommender.record
        return np.arange(self.table.num_items) if record is None else record.by_popularity

    @property
    def titles(self) -> pl.Series:
        """Folded titles, most popular items first; those of items without one are their item_ids.

        The first search makes them: 4 s at 10^6 items.
        """
        with self._lock:
            if self._titles is None:
                places = self.catalog_rows_N[self._by_popularity]
                item_ids = self.table.item_ids.array.take(pa.array(self._by_popularity))
                titles = Texts([]).array if self.catalog is None else self.catalog.titles.array
                known = titles.take(pa.array(places, mask=places == UNKNOWN_ROW))
                shown = pc.if_else(pc.equal(known.fill_null(""), ""), item_ids, known)
                self._titles = folded(pl.Series(shown, dtype=pl.String))
            return self._titles

    def search(self, query: str, limit: int) -> list[str]:
        """Find items by all words of a query, or by their item_id.

        Args:
            query: Words of a title, or parts of them; the most popular items if there is none.
            limit: Largest number of items.

        Returns:
            item_ids: that of the query itself, then titles that begin with it, then others; the most popular first.
        """
        words = folded(pl.Series([query]))[0].split()
        titles, places = self.titles, np.arange(self.table.num_items)
        for word in sorted(words, key=len, reverse=True):  # the longest leaves the fewest for the next
            is_found = titles.str.contains(word, literal=True)
            titles, places = titles.filter(is_found), places[is_found.to_numpy()]
        begins = titles.str.starts_with(" ".join(words)).to_numpy()
        places = np.concatenate([places[begins][:limit], places[~begins][:limit]])
        found = self.table.item_ids.of(self._by_popularity[places])
        return list(dict.fromkeys([query.strip()] * (query.strip() in self.table.row_of) + found))[:limit]

    def describe(self, item_ids: Sequence[str]) -> list[dict[str, object]]:
        """Describe the items that the checkpoint knows.

        Args:
            item_ids: Any item_ids.

        Returns:
            For each known one its `item_id`, `title`, tokens of its semantic ID, training interactions, fields, and the
            address of a picture.
        """
        rows = [self.table.row_of[item_id] for item_id in item_ids if item_id in self.table.row_of]
        vocabulary = self.recommender.sid_config.vocabulary
        items = []
        for row, cells in zip(rows, self._cells(rows), strict=True):
            codes = self.table.codes([row])[0]
            codes = codes[codes != EMPTY].tolist()
            picture = cells.pop(self.pictures, None) if self.pictures else None
            is_address = isinstance(picture, str) and picture.startswith(("https://", "http://"))
            items.append(
                {
                    "item_id": self.table.item_ids[row],
                    "title": cells.pop(columns.TITLE, None) or None,
                    "sid": [code_name(vocabulary, level, code) for level, code in enumerate(codes)],
                    "popularity": None if self.counts is None else int(self.counts[row]),
                    "fields": {name: value for name, value in cells.items() if value not in (None, "", [])},
                    "picture": picture if is_address else None,
                }
            )
        return items

    def _cells(self, rows: Sequence[int]) -> list[dict[str, object]]:
        """Title, fields and picture of items; empty for an item that the catalogue lacks."""
        places = self.catalog_rows_N[rows] if rows else np.empty(0, np.int64)
        if self.catalog is None or not (places >= 0).any():
            return [{} for _ in rows]
        names = dict.fromkeys([columns.TITLE, *self.names, *([self.pictures] if self.pictures else [])])
        cells = iter(self.catalog.items.select(list(names)).take(places[places >= 0]).to_pylist())
        return [
            {name: readable(value) for name, value in next(cells).items()} if place >= 0 else {} for place in places
        ]

    @cached_property
    def columns(self) -> list[dict[str, object]]:
        """Name, kind and values of the columns that conditions may name."""
        if self.catalog is None:
            return []
        frame = pl.DataFrame(self.catalog.items.select(self.names))
        frame = frame.with_columns(selectors.categorical().cast(pl.String))
        return [described for name in self.names if (described := describe_column(frame[name])) is not None]

    @cached_property
    def popularity(self) -> list[dict[str, object]]:
        """Most training interactions of an item within some shares of the catalogue, the less popular ones."""
        if self.counts is None:
            return []
        ordered = np.sort(self.counts)
        return [{"share": q, "interactions": int(ordered[int(q * (len(ordered) - 1))])} for q in QUANTILES]

    @cached_property
    def ranks(self) -> list[RankBy]:
        """Scores that the model can rank by, those of the recommender first."""
        own = self.recommender.ranker.rank_by
        vocabulary = self.recommender.sid_config.vocabulary
        every: tuple[RankBy, ...] = ("mixture", "items", "sid") if vocabulary.items is not None else ()
        return [own, *(rank for rank in every if rank != own)]

    def restrict(self, asked: ItemRequests, where: tuple[str, ...], max_popularity: int | None) -> ItemRequests:
        """Cut what a user may get to the items that meet conditions, as `permitted` finds them.

        Raises:
            ValueError: As `permitted` does.
        """
        rows = self.permitted(where, max_popularity)
        if rows is None:
            return asked
        own = asked.allow[0]
        return dataclasses.replace(asked, allow=[rows if own is None else own[np.isin(own, rows)]])

    def permitted(self, where: tuple[str, ...], max_popularity: int | None) -> np.ndarray | None:
        """Find the items that meet conditions. Requests that ask for the same ones get the same array.

        Args:
            where: SQL conditions on the columns of the catalogue.
            max_popularity: Most training interactions of an item.

        Returns:
            Item rows; None if nothing was asked for.

        Raises:
            ValueError: If a condition cannot be read, or what is asked for is not known here.
        """
        key = (where, max_popularity)
        if not where and max_popularity is None:
            return None
        with self._lock:
            rows = self._filters.get(key)
        if rows is None:
            rows = self._find(where, max_popularity)
            with self._lock:
                rows = self._filters.setdefault(key, rows)
                while len(self._filters) > KEPT_FILTERS:
                    del self._filters[next(iter(self._filters))]
        return rows

    def _find(self, where: tuple[str, ...], max_popularity: int | None) -> np.ndarray:
        is_permitted = np.ones(self.table.num_items, bool)
        if where:
            if self.catalog is None:
                raise ValueError("where needs the columns of a catalogue; start the service with --catalog.")
            meets = np.append(matches(self.catalog.items, where), False)  # the last for items that it lacks
            is_permitted &= meets[self.catalog_rows_N]
        if max_popularity is not None:
            if self.counts is None:
                raise ValueError("max_popularity needs training counts, which an earlier llmrec did not keep.")
            is_permitted &= self.counts <= max_popularity
        return np.flatnonzero(is_permitted)


def folded(texts: pl.Series) -> pl.Series:
    """Texts without case and accents."""
    return texts.str.normalize("NFKD").str.replace_all(r"\p{M}", "").str.to_lowercase()


def readable(value: object) -> object:
    """A cell as JSON has it, cut to what is shown."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
    if isinstance(value, list):
        return [readable(each) for each in value[:MOST_COLUMNS]]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and np.isfinite(value)):
        return value
    return None if isinstance(value, float) else str(value)[:LONGEST]


def describe_column(column: pl.Series) -> dict[str, object] | None:
    """Name, kind, and range or commonest values of a column; None for a kind that a form has no field for."""
    kind = column.dtype
    if kind == pl.Boolean:
        return {"name": column.name, "kind": "boolean"}
    if kind.is_numeric():
        values = column.drop_nulls().cast(pl.Float64)
        values = values.filter(values.is_finite())
        bounds = {"least": values.min(), "most": values.max()} if len(values) else {}
        return {"name": column.name, "kind": "number", **bounds}
    is_list = isinstance(kind, pl.List) and kind.inner == pl.String
    if kind != pl.String and not is_list:
        return None
    values = column.explode() if is_list else column
    counted = values.drop_nulls().alias("value").value_counts(sort=True)
    common = [value for value in counted["value"].head(MOST_VALUES).to_list() if len(value) <= LONGEST]
    return {"name": column.name, "kind": "list" if is_list else "text", "values": common}
