"""Columns of item_ids as arrays of item rows, without a Python string for every entry.

Shapes: B lists, T entries of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.item_ids import UNKNOWN_ROW, RowOf

TEXTS = pa.list_(pa.string())


@dataclass(frozen=True)
class IdLists:
    """Lists of item_ids, and the item rows of their entries.

    Attributes:
        ids: B lists of text, as they were given.
        is_given: (B,) bool, False where there is a null in the place of a list.
        lengths: (B,) int64 number of entries of each list, 0 for a null.
        rows: (T,) int64 item rows; UNKNOWN_ROW for an item_id that is unknown, or null.
    """

    ids: pa.ListArray
    is_given: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray, row_of: RowOf) -> IdLists:
        """Read a column.

        Args:
            column: Lists of text, or of whole numbers, which are read as text.
            row_of: Item row of each known item_id.

        >>> from llmrec.data.item_ids import ItemIds
        >>> lists = IdLists.of(pa.chunked_array([[["red", "mauve"], None, []]]), ItemIds(["red"]).row_of)
        >>> lists.rows, lists.lengths, lists.is_given
        (array([ 0, -1]), array([2, 0, 0]), array([ True, False,  True]))
        """
        ids = column.cast(TEXTS).combine_chunks()
        lengths = pc.list_value_length(ids).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        entries = ids.flatten().dictionary_encode()  # a look-up for each distinct item_id
        row_of_code = row_of.rows(entries.dictionary.to_pylist())
        codes = entries.indices.fill_null(len(row_of_code)).to_numpy(zero_copy_only=False)
        return cls(ids, ids.is_valid().to_numpy(zero_copy_only=False), lengths,
                   np.array([*row_of_code, UNKNOWN_ROW], dtype=np.int64)[codes])  # fmt: skip

    @cached_property
    def known(self) -> list[np.ndarray]:
        """B arrays of the item rows of known items."""
        ends, rows = np.cumsum(self.num_known).tolist(), self.rows[self.rows != UNKNOWN_ROW]
        return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @cached_property
    def num_known(self) -> np.ndarray:
        """(B,) int64 number of known items of each list."""
        return np.bincount(self.users[self.rows != UNKNOWN_ROW], minlength=len(self.lengths))

    @property
    def num_unknown(self) -> int:
        """Number of entries that are unknown."""
        return int((self.rows == UNKNOWN_ROW).sum())

    @cached_property
    def users(self) -> np.ndarray:
        """(T,) int64 position of the list of each entry."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def unknown(self) -> pa.ListArray:
        """B lists of the item_ids that are unknown."""
        is_unknown = self.rows == UNKNOWN_ROW
        counts = np.bincount(self.users[is_unknown], minlength=len(self.lengths))
        return lists_of(counts, self.ids.flatten().filter(pa.array(is_unknown)))

    @cached_property
    def with_null(self) -> np.ndarray:
        """Positions of the lists that have a null among their entries."""
        return np.unique(self.users[self.ids.flatten().is_null().to_numpy(zero_copy_only=False)])


def lists_of(lengths: np.ndarray, entries: pa.Array) -> pa.ListArray:
    """Cut entries into lists.

    Args:
        lengths: (B,) number of entries of each list.
        entries: The entries of all lists.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), entries)


def is_id_list(kind: pa.DataType) -> bool:
    """True for the type of a column that holds lists of item_ids: of text or whole numbers, or nulls alone."""
    if pa.types.is_null(kind):
        return True
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    entry = kind.value_type.value_type if pa.types.is_dictionary(kind.value_type) else kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    return any(is_kind(entry) for is_kind in (*texts, pa.types.is_null))
