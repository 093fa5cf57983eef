"""LeafFilter: the leaves of a trie that each row of a batch may reach; seen items, stock, a category.

A row's filter is two sets of leaves: those that its allow-list reaches (all without one) and, of them, those whose
wanted items are all excluded. A range of leaves holds a legal one where it holds more of the first than of the second.
A set is counted over a range by searching its sorted ranks for both ends or, where an allow-list is long, by look-ups
in running counts over all leaves, which all rows with that list share.

Nothing in `permits` synchronises with the host.

Shapes: B rows of the batch, U leaves, X most barred leaves of a row, A most leaves of a short allow-list, S long
allow-lists.

Source: our own; on the ranges of a prefix trie as GENRE (arXiv:2010.00904) decodes under, which needs another trie for
every set of candidates.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrec.decoding.trie.leaf_items import check_rows
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.device import from_host

COUNTED_FROM = 4096  # leaves of an allow-list; ranks take 8 bytes of each in every row, counts 4 bytes per leaf once
UNRESTRICTED, SHORT = -1, -2
MIN_WIDTH = 16  # columns of `rounded` ranks
_TENSORS = ("ranks", "allowed_ranks", "counts", "list_of_row")


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
    """

    def __init__(self, trie: SidTrie, rows: np.ndarray | Sequence[int]):
        self.trie = trie
        self.items = _pairs([rows], trie.num_items)
        self.leaves, self.num_entries = _leaf_pairs(trie, self.items)

    def __contains__(self, item: int) -> bool:
        place = np.searchsorted(self.items, item)
        return bool(place < len(self.items) and self.items[place] == item)

    @functools.cached_property
    def counts(self) -> Tensor:
        """(U + 1,) int32, its leaves that rank below each."""
        counts = torch.zeros(self.trie.num_leaves + 1, dtype=torch.int32, device=self.trie.device)
        counts[from_host(self.leaves, self.trie.device) + 1] = 1
        return counts.cumsum_(dim=0)


def resolved(trie: SidTrie, allow: Sequence[np.ndarray | AllowList | None]) -> list[AllowList | None]:
    """Allow-lists of a batch's rows; one for all rows that were given the same object."""
    given = {id(rows): rows for rows in allow if not isinstance(rows, AllowList | None)}
    made = {key: AllowList(trie, rows) for key, rows in given.items()}
    return [made.get(id(rows), rows) for rows in allow]


class LeafFilter:
    """Leaves that each row of a batch may reach: its allow-list, or everything, but for its exclusions.

    Args:
        trie: The trie that is filtered.
        exclude: Item rows barred for each row of the batch. A shared SID is barred when all its items are.
        allow: What each row of the batch is restricted to, item rows or an AllowList of this trie; None does not
            restrict that row. One object given for several rows is resolved once.

    Attributes:
        ranks: (B, X) int64, sorted barred leaves of each row, filled up with U.
        allowed_ranks: (B, A) int64, sorted leaves of the short allow-lists, filled up with U; None where there is none.
        counts: (S, U + 1) int32, leaves of each long allow-list that rank below; None where there is none.
        list_of_row: (B,) int64 row of `counts`, or SHORT or UNRESTRICTED; None without allow-lists.

    Raises:
        ValueError: If neither list is given, they differ in length, or an item row is outside the catalogue.
    """

    def __init__(
        self,
        trie: SidTrie,
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[np.ndarray | AllowList | None] | None = None,
    ):
        if exclude is None and allow is None:
            raise ValueError("A LeafFilter needs exclude or allow; to filter nothing, leave the filter out.")
        batch_size = len(exclude if exclude is not None else allow)
        exclude = exclude if exclude is not None else [()] * batch_size
        allow = allow if allow is not None else [None] * batch_size
        if len(exclude) != len(allow):
            raise ValueError(f"exclude has {len(exclude)} rows, allow has {len(allow)}; both need one per history.")
        self.trie, self.allowed_ranks, self.counts, self.list_of_row = trie, None, None, None
        allow = resolved(trie, allow)
        distinct = list(dict.fromkeys(wanted for wanted in allow if wanted is not None))
        place = {wanted: i for i, wanted in enumerate(distinct)}
        list_of_row = np.array([place.get(wanted, UNRESTRICTED) for wanted in allow], dtype=np.int64)
        wanted = _Wanted(trie, distinct, list_of_row)
        self.ranks = self._as_ranks(*_barred(trie, exclude, wanted), batch_size)
        if distinct:
            self._set_allowed(wanted)

    def _set_allowed(self, wanted: _Wanted) -> None:
        lengths = np.array([len(one.leaves) for one in wanted.lists])
        is_long = lengths >= COUNTED_FROM
        # Each list's row of `counts`, then each row's; the added last entry is what UNRESTRICTED reads.
        places = np.append(np.where(is_long, is_long.cumsum() - 1, SHORT), UNRESTRICTED)
        list_of_row = places[wanted.list_of_row]
        self.list_of_row = from_host(list_of_row, self.trie.device)
        if is_long.any():
            self.counts = torch.stack([one.counts for one, long in zip(wanted.lists, is_long, strict=True) if long])
        if (list_of_row == SHORT).any():
            rows = np.flatnonzero(list_of_row == SHORT)
            chosen = [wanted.lists[one].leaves for one in wanted.list_of_row[rows]]
            owner = rows.repeat([len(leaves) for leaves in chosen])
            self.allowed_ranks = self._as_ranks(owner, np.concatenate(chosen), len(list_of_row))

    def _as_ranks(self, rows: np.ndarray, leaves: np.ndarray, batch_size: int) -> Tensor:
        """(B, longest) leaves of each row, from (T,) ascending rows and their sorted leaves."""
        lengths = np.bincount(rows, minlength=batch_size)
        padded = np.full((batch_size, lengths.max(initial=0)), self.trie.num_leaves)
        padded[rows, np.arange(len(rows)) - (lengths.cumsum() - lengths)[rows]] = leaves
        return from_host(padded, self.trie.device)

    def check(self, trie: SidTrie, batch_size: int) -> None:
        """Refuse to filter another trie, or another batch.

        Raises:
            ValueError: If it is one.
        """
        if trie is not self.trie:
            raise ValueError("The filter is of another trie; make it from the trie that is searched.")
        if batch_size != len(self.ranks):
            raise ValueError(f"The filter is for {len(self.ranks)} rows, but there are {batch_size} prompts.")

    def permits(self, first_leaf: Tensor, end_leaf: Tensor) -> Tensor:
        """Whether ranges of leaves hold one that their row may reach.

        Args:
            first_leaf: (B, …) int64.
            end_leaf: (B, …) int64, exclusive.

        Returns:
            (B, …) bool.
        """
        bounds = torch.stack([first_leaf, end_leaf], dim=1).flatten(2)  # (B, 2, ranges)
        allowed = bounds[:, 1] - bounds[:, 0]
        if self.list_of_row is not None:
            kind = self.list_of_row.unsqueeze(1)
            if self.allowed_ranks is not None:
                allowed = torch.where(kind == SHORT, _listed(self.allowed_ranks, bounds), allowed)
            if self.counts is not None:
                below = self.counts[self.list_of_row.clamp(min=0).view(-1, 1, 1), bounds]
                allowed = torch.where(kind >= 0, below[:, 1] - below[:, 0], allowed)
        return (allowed > _listed(self.ranks, bounds)).view(first_leaf.shape)

    def rounded(self, rows: Tensor) -> LeafFilter:
        """The filter of some rows of the batch, its widths rounded up to powers of two.

        A CUDA graph is captured for each set of shapes; rounding leaves few of them.

        Args:
            rows: (B',) rows of this batch, which may repeat.
        """
        wide = copy.copy(self)
        wide.ranks = self._widened(self.ranks[rows])
        if self.list_of_row is not None:
            wide.list_of_row = self.list_of_row[rows]
        if self.allowed_ranks is not None:
            wide.allowed_ranks = self._widened(self.allowed_ranks[rows])
        if self.counts is not None:
            added = _power_of_two(len(self.counts)) - len(self.counts)
            wide.counts = torch.cat([self.counts, self.counts[:1].expand(added, -1)])
        return wide

    def _widened(self, ranks: Tensor) -> Tensor:
        width = ranks.shape[1]
        return pad(ranks, (0, max(MIN_WIDTH, _power_of_two(width)) - width), value=self.trie.num_leaves)

    @property
    def kind(self) -> tuple[str, ...]:
        """Names of the tensors that it consists of."""
        return tuple(name for name in _TENSORS if getattr(self, name) is not None)

    def tensors(self) -> tuple[Tensor, ...]:
        """What it consists of on the device, in the order of `kind`."""
        return tuple(getattr(self, name) for name in self.kind)

    def with_tensors(self, tensors: Sequence[Tensor]) -> LeafFilter:
        """A filter of the same kind over other tensors, such as the static inputs of a CUDA graph."""
        other = copy.copy(self)
        for name, value in zip(self.kind, tensors, strict=True):
            setattr(other, name, value)
        return other


class _Wanted:
    """Distinct allow-lists, as sorted keys: list * N + item row, and list * U + leaf with the wanted entries of it."""

    def __init__(self, trie: SidTrie, lists: list[AllowList], list_of_row: np.ndarray):
        self.trie, self.lists, self.list_of_row = trie, lists, list_of_row
        none = np.empty(0, np.int64)
        self.item_keys = np.concatenate([none, *(one.items + i * trie.num_items for i, one in enumerate(lists))])
        self.leaf_keys = np.concatenate([none, *(one.leaves + i * trie.num_leaves for i, one in enumerate(lists))])
        self.num_entries = np.concatenate([none, *(one.num_entries for one in lists)])

    def has_items(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether rows of the batch want items."""
        keys = self.list_of_row[rows] * self.trie.num_items + items
        found = np.append(self.item_keys, UNRESTRICTED)[np.searchsorted(self.item_keys, keys)]
        return (self.list_of_row[rows] == UNRESTRICTED) | (found == keys)

    def entries(self, rows: np.ndarray, leaves: np.ndarray) -> np.ndarray:
        """Entries of leaves that rows of the batch want; at least one of each."""
        keys = self.list_of_row[rows] * self.trie.num_leaves + leaves
        wanted = np.append(self.num_entries, 0)[np.searchsorted(self.leaf_keys, keys)]
        return np.where(self.list_of_row[rows] == UNRESTRICTED, self.trie.owners.num_entries(leaves), wanted)


def _barred(trie: SidTrie, exclude: Sequence[np.ndarray], wanted: _Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the batch, ascending, and their sorted leaves of which no wanted item is left."""
    keys = _pairs(exclude, trie.num_items)
    keys = keys[wanted.has_items(*np.divmod(keys, trie.num_items))]
    leaf_keys, num_barred = _leaf_pairs(trie, keys)
    rows, leaves = np.divmod(leaf_keys, trie.num_leaves)
    is_barred = num_barred == wanted.entries(rows, leaves)
    return rows[is_barred], leaves[is_barred]


def _pairs(lists: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """Sorted distinct keys list * N + item row."""
    items = check_rows(np.concatenate([np.asarray(rows, np.int64) for rows in lists] or [()]), num_items)
    return _distinct(np.arange(len(lists)).repeat([len(rows) for rows in lists]) * num_items + items)[0]


def _leaf_pairs(trie: SidTrie, item_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct keys list * U + leaf of keys list * N + item row, and how many entries each leaf has of them."""
    lists, items = np.divmod(item_keys, trie.num_items)
    position, leaves = trie.owners.entries(items)
    return _distinct(lists[position] * trie.num_leaves + leaves)


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct keys and how often each occurs. np.unique hashes, which takes ten times as long."""
    keys = np.sort(keys)
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[starts], np.diff(starts, append=len(keys))


def _listed(ranks: Tensor, bounds: Tensor) -> Tensor:
    """(B, ranges) ranks, (B, X) sorted, that lie between bounds (B, 2, ranges)."""
    begin, end = torch.searchsorted(ranks, bounds.flatten(1)).view_as(bounds).unbind(1)
    return end - begin


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
