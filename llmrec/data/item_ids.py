"""Texts and ids of all items as Arrow arrays, which take a tenth of what a list of Python strings does.

`Texts` reads like a list. `ItemIds` also finds the item row of an id: ids are looked up by their hash in a sorted
array, and compared. At 10^7 items the look-up takes 120 MB and is made in seconds; a dict takes 1 GB.

Shapes: N items, n ids that are looked up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UNKNOWN_ROW = -1  # in the place of an item row
BLOCK = 2**16  # texts that are Python's own at the same time


class Texts(Sequence[str]):
    """Texts in the order of item rows, which become Python's own when they are read.

    Args:
        texts: Any texts, or a column of them without empty cells.

    Attributes:
        array: (N,) large_string.

    Raises:
        ValueError: If one of the texts is no text.

    >>> titles = Texts(["Saw", "Jaws", "Up"])
    >>> titles[1], titles[:2], len(titles), titles == ["Saw", "Jaws", "Up"]
    ('Jaws', ['Saw', 'Jaws'], 3, True)
    """

    def __init__(self, texts: Iterable[str] | pa.Array | pa.ChunkedArray):
        if isinstance(texts, Texts):
            self.array: pa.LargeStringArray = texts.array
            return
        if not isinstance(texts, pa.Array | pa.ChunkedArray):
            texts = texts if isinstance(texts, np.ndarray) else list(texts)
            wrong = next((place for place, text in enumerate(texts) if not isinstance(text, str)), None)
            if wrong is not None:
                given = f"{texts[wrong]!r} ({type(texts[wrong]).__name__})"
                raise ValueError(f"{given} at place {wrong} is no text; write ids and titles as text, such as '5'.")
            texts = pa.array(texts, pa.large_string())
        texts = texts.cast(pa.large_string())
        self.array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        return self.array[place].to_pylist() if isinstance(place, slice) else self.array[int(place)].as_py()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            yield from self.array.slice(first, BLOCK).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self.array.equals(other.array)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        return repr(self[:]) if len(self) <= 10 else f"<{len(self)} texts, first {self[:3]}>"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array | pa.ChunkedArray:
        """Convert to the type that is asked for, or plain strings, of which one array holds 2 GiB."""
        if self.array.nbytes < 2**31:
            return self.array.cast(type or pa.string())
        parts = (self.array.slice(first, BLOCK) for first in range(0, len(self), BLOCK))
        return pa.chunked_array([part.cast(type or pa.string()) for part in parts])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=str if dtype is None else dtype)  # no texts, too, are texts

    def of(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """Read the texts of item rows (n,)."""
        return self.array.take(pa.array(rows, pa.int64())).to_pylist()


class ItemIds(Texts):
    """External ids of items, with the item row of each.

    >>> ids = ItemIds(["red", "green"])
    >>> ids.row_of["green"], "blue" in ids.row_of, ids.row_of.rows(["green", "blue", "red"]).tolist()
    (1, False, [1, -1, 0])
    """

    @cached_property
    def row_of(self) -> RowOf:
        """Item row of each id; of a repeated one, any."""
        return RowOf(self)

    @property
    def first_repeated(self) -> int | None:
        """Lowest item row whose id a later one has too; None if all differ."""
        return self.row_of.first_repeated()

    def __contains__(self, item_id: object) -> bool:
        return item_id in self.row_of

    def __reduce__(self) -> tuple[type[ItemIds], tuple[pa.Array]]:
        """Leave the look-up behind when another process gets the ids: hashes differ between processes."""
        return ItemIds, (self.array,)

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add the ids to a hash: their lines, or JSON if an id has several lines."""
        if pc.any(pc.match_substring(self.array, "\n")).as_py():
            digest.update(b"\xff" + json.dumps(list(self)).encode())  # no text begins with this byte
            return
        for first in range(0, len(self), BLOCK):
            digest.update(("\n" * (first > 0) + "\n".join(self[first : first + BLOCK])).encode())


class RowOf(Mapping[str, int]):
    """Item row of each id, by hashes in ascending order.

    Args:
        item_ids: Ids whose positions are the item rows.
    """

    def __init__(self, item_ids: ItemIds):
        self.item_ids = item_ids
        blocks = (item_ids[first : first + BLOCK] for first in range(0, len(item_ids), BLOCK))
        hashes_N = np.concatenate([np.empty(0, np.int64), *map(hashes, blocks)])
        order_N = np.argsort(hashes_N, kind="stable")
        self._hashes_N = hashes_N[order_N]
        self._rows_N = order_N.astype(np.int32 if len(order_N) < 2**31 else np.int64)

    def __reduce__(self) -> tuple[type[RowOf], tuple[ItemIds]]:
        """Make the look-up anew in another process, which has other hashes."""
        return RowOf, (self.item_ids,)

    def rows(self, item_ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Find the item rows of ids.

        Args:
            item_ids: n ids; whole catalogues as `ItemIds` or as an Arrow array.

        Returns:
            (n,) int64, UNKNOWN_ROW for an id that is not there.
        """
        if isinstance(item_ids, Texts | pa.Array | pa.ChunkedArray):
            asked = item_ids.array if isinstance(item_ids, Texts) else item_ids.cast(pa.large_string())
            found = pc.index_in(asked, value_set=self.item_ids.array)
            return found.fill_null(UNKNOWN_ROW).to_numpy(zero_copy_only=False).astype(np.int64)
        asked_n, rows_n = hashes(item_ids), np.full(len(item_ids), UNKNOWN_ROW)
        place_n, waiting = np.searchsorted(self._hashes_N, asked_n), np.arange(len(item_ids))
        while len(waiting):  # more than once only where two ids have one hash
            waiting = waiting[place_n[waiting] < len(self)]
            waiting = waiting[self._hashes_N[place_n[waiting]] == asked_n[waiting]]
            candidates = self._rows_N[place_n[waiting]]
            pairs = zip(self.item_ids.of(candidates), waiting.tolist(), strict=True)
            is_it = np.array([text == item_ids[place] for text, place in pairs], dtype=bool)
            rows_n[waiting[is_it]] = candidates[is_it]
            waiting = waiting[~is_it]
            place_n[waiting] += 1
        return rows_n

    def first_repeated(self) -> int | None:
        """Find the lowest item row whose id a later one has too; None if all differ."""
        same = np.flatnonzero(self._hashes_N[1:] == self._hashes_N[:-1])
        rows = np.sort(self._rows_N[np.union1d(same, same + 1)])
        last = dict(zip(self.item_ids.of(rows), rows.tolist(), strict=True))
        return next((row for item_id, row in zip(self.item_ids.of(rows), rows.tolist(), strict=True)
                     if last[item_id] != row), None)  # fmt: skip

    def __getitem__(self, item_id: str) -> int:
        asked = hash(item_id)
        place = int(self._hashes_N.searchsorted(asked))
        while place < len(self) and self._hashes_N[place] == asked:
            row = int(self._rows_N[place])
            if self.item_ids[row] == item_id:
                return row
            place += 1
        raise KeyError(item_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)


class TextOf(Mapping[str, str]):
    """Text of each id.

    Args:
        item_ids: Ids of the items.
        texts: Text of each item row.

    >>> title_of = TextOf(ItemIds(["a", "b"]), Texts(["Saw", "Jaws"]))
    >>> title_of["b"], title_of.get("c"), title_of.of(["b", "c"])
    ('Jaws', None, ['Jaws', None])
    """

    def __init__(self, item_ids: ItemIds, texts: Texts):
        self.row_of, self.texts = item_ids.row_of, texts

    def of(self, item_ids: Sequence[str]) -> list[str | None]:
        """Read the texts of ids, None for an unknown one."""
        rows = self.row_of.rows(item_ids)
        return self.texts.array.take(pa.array(rows, mask=rows == UNKNOWN_ROW)).to_pylist()

    def __getitem__(self, item_id: str) -> str:
        return self.texts[self.row_of[item_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row_of)

    def __len__(self) -> int:
        return len(self.row_of)


def hashes(item_ids: Sequence[str]) -> np.ndarray:
    """(n,) int64 hashes of ids, the same within a process."""
    return np.fromiter(map(hash, item_ids), np.int64, len(item_ids))
