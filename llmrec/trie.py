"""SidTrie: the prefixes of a catalogue's semantic IDs as sorted arrays on a device.

SIDs are sorted, so the nodes of a depth are in order, the children of a node are contiguous, and so are the leaves
below it. A node is its position among the nodes of its depth; a leaf's rank is its SID's position among all SIDs. A
filter (seen items, stock, category) is a set of leaf ranks: a node is legal where its range of leaves holds a legal
one.

Shapes: B rows, M beams, K codes of a level, U distinct SIDs, L levels.

Source: GENRE's prefix trie (arXiv:2010.00904), stored as arrays as STATIC (arXiv:2602.22647) does, with implicit
child ids instead of stored ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.sid import EMPTY, SidTable

ROOT = 0


@dataclass(frozen=True)
class Depth:
    """Nodes that have chosen the same number of codes.

    The last entry of every array stands for no node: -1 indexes it; it has no children and no leaves.

    Attributes:
        codes: (nodes + 1,) last code of each node; -1 for the root.
        first_leaf: (nodes + 1,) rank of the first leaf below each node.
        end_leaf: (nodes + 1,) one past the rank of the last leaf below.
        first_child: (nodes + 1,) position of the first child among the nodes of the next depth.
        num_children: (nodes + 1,) 0 for a leaf.
    """

    codes: Tensor
    first_leaf: Tensor
    end_leaf: Tensor
    first_child: Tensor
    num_children: Tensor

    def to(self, device: torch.device | str) -> Depth:
        return Depth(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class SidTrie:
    """Prefix tree over the SIDs of a table, or of some of its items.

    Args:
        table: Semantic IDs.
        rows: Item rows to include; all when left out.
        device: Where the arrays live.

    Raises:
        ValueError: If no item is included.
    """

    def __init__(
        self,
        table: SidTable,
        rows: Sequence[int] | np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        keep = np.arange(len(table.item_rows)) if rows is None else np.flatnonzero(np.isin(table.item_rows, rows))
        if len(keep) == 0:
            raise ValueError("A trie needs at least one item; the given rows name none of the table.")
        self.level_sizes, self.num_levels = list(table.level_sizes), table.num_levels
        codes, item_rows = table.all_codes[keep], table.item_rows[keep]
        order = np.lexsort(codes.T[::-1])
        codes, item_rows = codes[order], item_rows[order]
        is_first = np.concatenate([[True], (codes[1:] != codes[:-1]).any(axis=1)])
        self.leaf_items = item_rows
        self.leaf_starts = np.append(np.flatnonzero(is_first), len(item_rows))
        self.codes_UL = torch.from_numpy(codes[is_first]).to(device)
        self.depths = [depth.to(device) for depth in _build_depths(codes[is_first])]
        self._num_table_items = table.num_items

    @property
    def num_leaves(self) -> int:
        return len(self.codes_UL)

    @property
    def device(self) -> torch.device:
        return self.codes_UL.device

    def children(self, nodes: Tensor, level: int) -> Tensor:
        """Child of each node under every code of a level.

        Args:
            nodes: (…) int64, nodes that have chosen `level` codes; -1 is outside the catalogue.
            level: Level of the code to be chosen, 0-based.

        Returns:
            (…, K) int64 nodes of the next depth, -1 where the catalogue has no such prefix.

        Raises:
            ValueError: If `level` is not below `num_levels`.
        """
        if not 0 <= level < self.num_levels:
            raise ValueError(f"level {level} is not in [0, {self.num_levels}).")
        depth, size = self.depths[level], self.level_sizes[level]
        slots = torch.arange(size, device=nodes.device)  # children of a node are at most the codes of the level
        exists = slots < depth.num_children[nodes].unsqueeze(-1)
        child = torch.where(exists, depth.first_child[nodes].unsqueeze(-1) + slots, -1)
        code = torch.where(exists, self.depths[level + 1].codes[child], size)  # column `size` collects the empty slots
        found = torch.full((*nodes.shape, size + 1), -1, dtype=torch.int64, device=nodes.device)
        return found.scatter_(-1, code, child)[..., :size]

    def allowed(self, nodes: Tensor, level: int) -> Tensor:
        """Codes that extend each prefix to at least one item.

        Args:
            nodes: (…) int64, nodes that have chosen `level` codes; -1 is outside the catalogue.
            level: Level of the code to be chosen, 0-based.

        Returns:
            (…, K) bool. A row is all False where the node is -1 or a leaf.
        """
        return self.children(nodes, level) >= 0

    def is_leaf(self, nodes: Tensor, depth: int) -> Tensor:
        """Whether nodes that have chosen `depth` codes are complete SIDs; False for -1."""
        return (nodes >= 0) & (self.depths[depth].num_children[nodes] == 0)

    def leaf_range(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """First and one past the last leaf rank below nodes at `depth`; both 0 for -1."""
        return self.depths[depth].first_leaf[nodes], self.depths[depth].end_leaf[nodes]

    def items(self, rank: int) -> np.ndarray:
        """Item rows that own the SID of a leaf, in ascending order."""
        return self.leaf_items[self.leaf_starts[rank] : self.leaf_starts[rank + 1]]

    def leaves_of(self, rows: np.ndarray) -> np.ndarray:
        """Sorted ranks of the leaves whose items are all among `rows`; items outside the trie are ignored."""
        chosen = np.zeros(self._num_table_items, dtype=bool)
        chosen[rows] = True
        return np.flatnonzero(np.logical_and.reduceat(chosen[self.leaf_items], self.leaf_starts[:-1]))

    def leaves_with(self, rows: np.ndarray) -> np.ndarray:
        """Sorted ranks of the leaves that own at least one item of `rows`."""
        chosen = np.zeros(self._num_table_items, dtype=bool)
        chosen[rows] = True
        return np.flatnonzero(np.logical_or.reduceat(chosen[self.leaf_items], self.leaf_starts[:-1]))


class LeafFilter:
    """Leaves that each row of a batch may reach: its allow-list, or everything but its exclusions.

    Args:
        trie: The trie that is filtered.
        exclude: Item rows barred for each row of the batch. A shared SID is barred when all its items are.
        allow: Item rows each row of the batch is restricted to; None does not restrict that row.

    Raises:
        ValueError: If neither list is given, or they differ in length.
    """

    def __init__(
        self,
        trie: SidTrie,
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
    ):
        if exclude is None and allow is None:
            raise ValueError("A LeafFilter needs exclude or allow; to filter nothing, leave the filter out.")
        batch_size = len(exclude if exclude is not None else allow)
        exclude = exclude if exclude is not None else [np.empty(0, np.int64)] * batch_size
        allow = allow if allow is not None else [None] * batch_size
        if len(exclude) != len(allow):
            raise ValueError(f"exclude has {len(exclude)} rows, allow has {len(allow)}; both need one per history.")
        ranks = [
            trie.leaves_of(np.asarray(barred, np.int64))
            if wanted is None
            else trie.leaves_with(np.setdiff1d(wanted, barred).astype(np.int64))
            for barred, wanted in zip(exclude, allow, strict=True)
        ]
        width = max(map(len, ranks), default=0)
        padded = np.full((batch_size, width), trie.num_leaves, dtype=np.int64)
        for row, found in zip(padded, ranks, strict=True):
            row[: len(found)] = found
        self.ranks = torch.from_numpy(padded).to(trie.device)
        self.is_allow_list = torch.tensor([wanted is not None for wanted in allow], device=trie.device)

    def permits(self, first_leaf: Tensor, end_leaf: Tensor) -> Tensor:
        """Whether ranges of leaves hold one that their row may reach.

        Args:
            first_leaf: (B, …) int64.
            end_leaf: (B, …) int64, exclusive.

        Returns:
            (B, …) bool.
        """
        batch_size = len(first_leaf)
        listed = (
            torch.searchsorted(self.ranks, end_leaf.reshape(batch_size, -1).contiguous())
            - torch.searchsorted(self.ranks, first_leaf.reshape(batch_size, -1).contiguous())
        ).reshape(first_leaf.shape)
        is_allow_list = self.is_allow_list.reshape(-1, *[1] * (first_leaf.dim() - 1))
        return torch.where(is_allow_list, listed > 0, end_leaf - first_leaf > listed)


def _build_depths(codes_UL: np.ndarray) -> list[Depth]:
    """Nodes of every depth, root first, from sorted distinct SIDs."""
    num_leaves, num_levels = codes_UL.shape
    first, end = [np.zeros(1, np.int64)], [np.full(1, num_leaves, np.int64)]
    last_codes = [np.full(1, EMPTY)]
    is_new_prefix = np.zeros(num_leaves, dtype=bool)
    is_new_prefix[0] = True
    for level in range(num_levels):
        column = codes_UL[:, level]
        is_new_prefix |= np.concatenate([[True], column[1:] != column[:-1]])
        exists = column != EMPTY
        start = np.flatnonzero(is_new_prefix & exists)
        node_of_leaf = np.cumsum(is_new_prefix & exists)[exists] - 1
        first.append(start)
        end.append(start + np.bincount(node_of_leaf, minlength=len(start)))
        last_codes.append(column[start])
    depths = []
    for depth in range(num_levels + 1):
        below = first[depth + 1] if depth < num_levels else np.empty(0, np.int64)
        first_child = np.searchsorted(below, first[depth])
        num_children = np.searchsorted(below, end[depth]) - first_child
        arrays = (last_codes[depth], first[depth], end[depth], first_child, num_children)
        no_node = (EMPTY, 0, 0, 0, 0)
        depths.append(Depth(*(torch.from_numpy(np.append(*pair)) for pair in zip(arrays, no_node, strict=True))))
    return depths
