"""Requests of many users as a table: lists of item_ids become item rows, and further columns are kept for the answers.

The columns are the keys of `request_file`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.data.columns import HISTORY
from llmrec.data.item_ids import UNKNOWN_ROW, RowOf
from llmrec.data.requests.id_lists import IdLists, is_id_list
from llmrec.data.requests.item_lists import MOST_PROBLEMS, Unknown, names_unknown, shown
from llmrec.data.requests.request_file import LISTS, carried_keys


@dataclass(frozen=True)
class UserTable:
    """Requests of B users.

    Attributes:
        lists: `history` and, where there are such columns, `exclude` and `allow`.
        carried: The other columns, which the answers repeat.
    """

    lists: dict[str, IdLists]
    carried: pa.Table

    @classmethod
    def of(cls, users: pa.Table, row_of: RowOf) -> UserTable:
        """Read a table.

        Args:
            users: A row for each user.
            row_of: Item row of each known item_id.

        Raises:
            ValueError: If its columns are not those of requests, with a sentence whose subject the caller adds.
        """
        carried = check_columns(users.schema)
        lists = {name: IdLists.of(users[name], row_of) for name in LISTS if name in users.column_names}
        return cls(lists, users.select(carried))

    @property
    def history(self) -> IdLists:
        """Histories, oldest item first."""
        return self.lists[HISTORY]

    @property
    def is_cold(self) -> np.ndarray:
        """(B,) bool, True for a user without a known item in the history."""
        return self.history.num_known == 0

    def problems(self, unknown: Unknown) -> tuple[int, list[tuple[int, str]]]:
        """Find the lists that cannot be answered.

        Args:
            unknown: `error` refuses unknown items; `skip` does not.

        Returns:
            Number of such lists; the first of them, as the position of the user and a sentence.
        """
        found: list[tuple[int, str]] = []
        count = 0
        for name, ids in self.lists.items():
            nulls = ids.with_null
            found += [(int(row), f'"{name}" has a null; item_ids are text') for row in nulls[:MOST_PROBLEMS]]
            count += len(nulls)
            if unknown == "error":
                strange = np.setdiff1d(ids.users[ids.rows == UNKNOWN_ROW], nulls)
                firsts = [(int(row), ids.unknown[int(row)].as_py()) for row in strange[:MOST_PROBLEMS]]
                found += [(row, names_unknown(f'"{name}"', strangers)) for row, strangers in firsts]
                count += len(strange)
        return count, sorted(found)[:MOST_PROBLEMS]


def check_columns(schema: pa.Schema) -> list[str]:
    """Find the columns that answers repeat.

    Raises:
        ValueError: If a column occurs twice, is missing, cannot be kept, or holds no lists of item_ids where it should.
    """
    names = schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"has two columns {shown(repeated)}; rename one")
    carried = carried_keys(names)
    for name in LISTS:
        if name in names and not is_id_list(schema.field(name).type):
            raise ValueError(f'has "{name}" of type {schema.field(name).type}; a list of item_ids is needed, as text')
    return carried
