"""AllowList: items that answers are restricted to, with the leaves that they reach; resolved on the host.

Shapes: U leaves, N items of the catalogue, T pairs that are looked up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.decoding.trie.leaf_items import check_rows
from llmrec.decoding.trie.leaf_mask import UNRESTRICTED
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.device import from_host

ItemRows = np.ndarray | Sequence[int]


class AllowList:
    """Items that answers are restricted to, resolved to leaves once for as many batches as use it.

    Args:
        trie: The trie that is filtered.
        rows: Item rows; those outside the trie are ignored.

    Attributes:
        items: Sorted distinct item rows.
        leaves: Sorted leaves that own one of them.
        num_entries: How many of the items each of these leaves owns.

    Raises:
        ValueError: If an item row is outside the catalogue.

    Examples:
        >>> from llmrec import AllowList, LeafFilter, SidTable, SidTrie
        >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
        >>> in_stock = AllowList(trie, [0, 1])
        >>> in_stock.leaves.tolist(), 2 in in_stock  # leaf 1 is item 2's
        ([0, 2], False)
        >>> leaf_filter = LeafFilter(trie, allow=[in_stock, in_stock])  # for two users; nothing is resolved again
    """

    def __init__(self, trie: SidTrie, rows: ItemRows):
        self.trie = trie
        self.items = list_item_keys([rows], trie.num_items)
        self.leaves, self.num_entries = list_leaf_keys(trie, self.items)

    def __contains__(self, item: int) -> bool:
        place = np.searchsorted(self.items, item)
        return bool(place < len(self.items) and self.items[place] == item)

    @functools.cached_property
    def counts(self) -> Tensor:
        """(U + 1,) int32 on the trie's device, number of its leaves that rank below each leaf."""
        counts = torch.zeros(self.trie.num_leaves + 1, dtype=torch.int32, device=self.trie.device)
        counts[from_host(self.leaves, self.trie.device) + 1] = 1
        return counts.cumsum_(dim=0)


def resolve_allow_lists(trie: SidTrie, allow: Sequence[ItemRows | AllowList | None]) -> list[AllowList | None]:
    """Resolve the allow-lists of a batch, once for all prompts that were given the same object."""
    resolved: dict[int, AllowList] = {}
    lists: list[AllowList | None] = []
    for rows in allow:
        if rows is None or isinstance(rows, AllowList):
            lists.append(rows)
            continue
        if id(rows) not in resolved:
            resolved[id(rows)] = AllowList(trie, rows)
        lists.append(resolved[id(rows)])
    return lists


class BatchAllowLists:
    """Distinct allow-lists of a batch, which can be asked about many prompts at once.

    Args:
        trie: The trie that is filtered.
        allow: Allow-list of each prompt; None does not restrict that prompt.

    Attributes:
        lists: Distinct allow-lists.
        list_of_row: (B,) int64 position of each prompt's list among them, or UNRESTRICTED.
    """

    def __init__(self, trie: SidTrie, allow: Sequence[AllowList | None]):
        self.trie, self.lists = trie, list(dict.fromkeys(one for one in allow if one is not None))
        place = {one: i for i, one in enumerate(self.lists)}
        self.list_of_row = np.array([UNRESTRICTED if one is None else place[one] for one in allow], dtype=np.int64)
        none = np.empty(0, np.int64)
        self._item_keys = np.concatenate([none, *(one.items + i * trie.num_items for i, one in enumerate(self.lists))])
        self._leaf_keys = np.concatenate(
            [none, *(one.leaves + i * trie.num_leaves for i, one in enumerate(self.lists))]
        )
        self._num_entries = np.concatenate([none, *(one.num_entries for one in self.lists)])

    def has_items(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Tell if prompts of the batch allow items; (T,) each -> (T,) bool."""
        keys = self.list_of_row[rows] * self.trie.num_items + items
        nearest = np.append(self._item_keys, UNRESTRICTED)[np.searchsorted(self._item_keys, keys)]
        return (self.list_of_row[rows] == UNRESTRICTED) | (nearest == keys)

    def num_entries(self, rows: np.ndarray, leaves: np.ndarray) -> np.ndarray:
        """Count the items of leaves that prompts of the batch allow, at least one each; (T,) each -> (T,) int64."""
        keys = self.list_of_row[rows] * self.trie.num_leaves + leaves
        allowed = np.append(self._num_entries, 0)[np.searchsorted(self._leaf_keys, keys)]
        return np.where(self.list_of_row[rows] == UNRESTRICTED, self.trie.owners.num_entries(leaves), allowed)

    def barred_leaves(self, exclude: Sequence[ItemRows]) -> tuple[np.ndarray, np.ndarray]:
        """Find the leaves that have no allowed item left.

        Args:
            exclude: Item rows barred for each prompt.

        Returns:
            Places in the batch, ascending, and their sorted leaves; (T,) int64 each.
        """
        keys = list_item_keys(exclude, self.trie.num_items)
        keys = keys[self.has_items(*np.divmod(keys, self.trie.num_items))]
        leaf_keys, num_barred = list_leaf_keys(self.trie, keys)
        rows, leaves = np.divmod(leaf_keys, self.trie.num_leaves)
        is_barred = num_barred == self.num_entries(rows, leaves)
        return rows[is_barred], leaves[is_barred]


def list_item_keys(lists: Sequence[ItemRows], num_items: int) -> np.ndarray:
    """Sorted distinct keys `list * N + item row` of lists of item rows."""
    rows = [np.asarray(each, np.int64) for each in lists] or [np.empty(0, np.int64)]
    items = check_rows(np.concatenate(rows), num_items)
    return _distinct(np.arange(len(lists)).repeat([len(each) for each in lists]) * num_items + items)[0]


def list_leaf_keys(trie: SidTrie, item_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct keys `list * U + leaf` of keys `list * N + item row`, and how many of the latter each has."""
    lists, items = np.divmod(item_keys, trie.num_items)
    position, leaves = trie.owners.entries(items)
    return _distinct(lists[position] * trie.num_leaves + leaves)


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct keys and how often each occurs. np.unique hashes, which takes ten times as long."""
    keys = np.sort(keys)
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[starts], np.diff(starts, append=len(keys))
