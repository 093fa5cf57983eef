"""LeafFilter: the leaves of a trie that each prompt of a batch may reach; seen items, stock, a category.

Item rows are resolved to leaves on the host (`llmrec.decoding.trie.allow_list`), once when the filter is made. What is
left for the search is a `LeafMask` on the device.

Shapes: B prompts, U leaves.

Source: our own; on the ranges of a prefix trie as GENRE (arXiv:2010.00904) decodes under, which needs another trie for
every set of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from llmrec.decoding.trie.allow_list import AllowList, BatchAllowLists, ItemRows, resolve_allow_lists
from llmrec.decoding.trie.leaf_mask import SHORT, UNRESTRICTED, LeafMask
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.device import from_host

COUNTED_FROM = 4096  # leaves of an allow-list; ranks take 8 bytes of each per prompt, counts 4 bytes per leaf once


class LeafFilter:
    """Leaves that each prompt of a batch may reach: its allow-list, or everything, except for its exclusions.

    Args:
        trie: The trie that is filtered.
        exclude: B lists of item rows that are barred for each prompt. A shared SID is barred when all its items are.
        allow: B lists of item rows, or AllowLists of this trie, that each prompt is restricted to; None does not
            restrict that prompt. One object given for several prompts is resolved once.

    Attributes:
        mask: The filter as tensors on the trie's device.

    Raises:
        ValueError: If neither list is given, they differ in length, or an item row is outside the catalogue.

    Examples:
        Items 0 and 2 share their first code. With item 0 excluded, its leaf cannot be reached, but item 2's can:

        >>> import torch
        >>> from llmrec import LeafFilter, SidTable, SidTrie
        >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
        >>> leaf_filter = LeafFilter(trie, exclude=[[0]])
        >>> nodes = torch.tensor([[0, 1, 2]])  # the leaves (0, 1), (0, 2) and (1, 0)
        >>> leaf_filter.permits(*trie.leaf_range(nodes, depth=2)).tolist()
        [[False, True, True]]

        Each prompt of a batch has its own allow-list, or none:

        >>> leaf_filter = LeafFilter(trie, allow=[[1], None])
        >>> leaf_filter.permits(*trie.leaf_range(nodes.expand(2, -1), depth=2)).tolist()
        [[False, False, True], [True, True, True]]
    """

    def __init__(
        self,
        trie: SidTrie,
        exclude: Sequence[ItemRows] | None = None,
        allow: Sequence[ItemRows | AllowList | None] | None = None,
    ):
        given = exclude if exclude is not None else allow
        if given is None:
            raise ValueError("A LeafFilter needs exclude or allow; to filter nothing, leave the filter out.")
        exclude = [()] * len(given) if exclude is None else exclude
        allow = [None] * len(given) if allow is None else allow
        if len(exclude) != len(allow):
            raise ValueError(f"exclude has {len(exclude)} lists, allow has {len(allow)}; both need one per history.")
        self.trie = trie
        batch = BatchAllowLists(trie, resolve_allow_lists(trie, allow))
        barred = self._as_ranks(*batch.barred_leaves(exclude), len(exclude))
        self.mask = LeafMask(trie.num_leaves, barred, *self._allowed(batch))

    @classmethod
    def of(
        cls,
        trie: SidTrie,
        exclude: Sequence[ItemRows] | None,
        allow: Sequence[ItemRows | AllowList | None] | None,
    ) -> Self | None:
        """Make a filter, or None where nothing is barred; see the class."""
        return None if exclude is None and allow is None else cls(trie, exclude, allow)

    def _allowed(self, batch: BatchAllowLists) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """`allowed`, `counts` and `list_of_row` of the mask."""
        if not batch.lists:
            return None, None, None
        is_long = np.array([len(one.leaves) for one in batch.lists]) >= COUNTED_FROM
        # Each list's place in `counts`, then each prompt's; the added last entry is what UNRESTRICTED reads.
        places = np.append(np.where(is_long, is_long.cumsum() - 1, SHORT), UNRESTRICTED)
        list_of_row = places[batch.list_of_row]
        allowed = counts = None
        if is_long.any():
            counts = torch.stack([one.counts for one, long in zip(batch.lists, is_long, strict=True) if long])
        if (list_of_row == SHORT).any():
            rows = np.flatnonzero(list_of_row == SHORT)
            leaves = [batch.lists[one].leaves for one in batch.list_of_row[rows]]
            owner = rows.repeat([len(each) for each in leaves])
            allowed = self._as_ranks(owner, np.concatenate(leaves), len(list_of_row))
        return allowed, counts, from_host(list_of_row, self.trie.device)

    def _as_ranks(self, rows: np.ndarray, leaves: np.ndarray, batch_size: int) -> Tensor:
        """(B, longest) leaves of each prompt, from (T,) ascending places in the batch and their sorted leaves."""
        lengths = np.bincount(rows, minlength=batch_size)
        padded = np.full((batch_size, lengths.max(initial=0)), self.trie.num_leaves)
        padded[rows, np.arange(len(rows)) - (lengths.cumsum() - lengths)[rows]] = leaves
        return from_host(padded, self.trie.device)

    def check(self, trie: SidTrie, batch_size: int) -> None:
        """Refuse to filter another trie, or another batch.

        Args:
            trie: Trie that is searched.
            batch_size: Number of prompts, B.

        Raises:
            ValueError: If the filter was made from another trie, or for another number of prompts.

        Examples:
            >>> from llmrec import LeafFilter, SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green"], [[0, 1], [1, 0]]))
            >>> LeafFilter(trie, exclude=[[0]]).check(trie, batch_size=2)
            Traceback (most recent call last):
            ValueError: The filter is for 1 prompts, but there are 2.
        """
        if trie is not self.trie:
            raise ValueError("The filter is of another trie; make it from the trie that is searched.")
        if batch_size != len(self.mask):
            raise ValueError(f"The filter is for {len(self.mask)} prompts, but there are {batch_size}.")

    def permits(self, first_leaf: Tensor, end_leaf: Tensor) -> Tensor:
        """Tell which ranges of leaves hold one that their prompt may reach; the device is not waited for.

        Args:
            first_leaf: (B, …) int64.
            end_leaf: (B, …) int64, exclusive.

        Returns:
            (B, …) bool.
        """
        return self.mask.permits(first_leaf, end_leaf)
