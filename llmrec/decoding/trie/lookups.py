"""TrieLookups: from prefixes to codes, children and leaves, on the device of the trie.

No look-up waits for the device, so that all of them can be captured in a CUDA graph.

Shapes: K codes of a level, W most children of a node of the level, U distinct SIDs, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmrec.decoding.trie.level import TrieLevel
from llmrec.sid.bounds import EMPTY

ROOT = 0


class TrieLookups:
    """Look-ups of a SidTrie.

    Args:
        levels: Children of the nodes of each depth.
        num_leaves: Number of distinct SIDs, U.

    Attributes:
        level_sizes: Number of codes of each level.
        num_levels: Number of levels, L.
        num_leaves: Number of distinct SIDs, U.
    """

    def __init__(self, levels: list[TrieLevel], num_leaves: int):
        self._levels, self.num_leaves = levels, num_leaves
        self.level_sizes, self.num_levels = [level.size for level in levels], len(levels)

    @property
    def device(self) -> torch.device:
        """Device of the levels."""
        return self._levels[0].first.device

    @property
    def num_bytes(self) -> int:
        """Bytes on the device: offsets, codes and bitmaps. `owners.num_bytes` are those of the items, on the host."""
        return sum(level.num_bytes for level in self._levels)

    def width(self, level: int) -> int:
        """Number of columns that `expand` returns for a level, W.

        It is the largest number of children of a node, or K for a level that is stored as bitmaps.

        Args:
            level: Level of the codes, 0-based.

        Raises:
            ValueError: If `level` is not below `num_levels`.

        Examples:
            >>> from llmrec import SidTable, SidTrie
            >>> SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]])).width(0)
            2
        """
        return self._level(level).width

    def has_leaves(self, depth: int) -> bool:
        """Tell if some SID has exactly `depth` codes; a constant of the trie.

        Args:
            depth: Number of codes, from 0 to L.

        Examples:
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green"], [[0, 1], [1, -1]]))  # green has one code
            >>> [trie.has_leaves(depth) for depth in range(3)]
            [False, True, True]
        """
        ends = [level.num_ends for level in self._levels] + [self.num_leaves]
        return depth > 0 and ends[depth] > ends[depth - 1]

    def children(self, nodes: Tensor, level: int) -> Tensor:
        """Find the child of each node under every code of a level.

        Args:
            nodes: (…) int64 nodes at depth `level`; -1 is outside the catalogue, 0 at depth 0 the root.
            level: Level of the code, 0-based.

        Returns:
            (…, K) int64 nodes of the next depth, -1 if the catalogue has no such prefix.

        Raises:
            ValueError: If `level` is not below `num_levels`.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> trie.children(torch.tensor([0]), level=0).tolist()  # of the root
            [[0, 1]]
            >>> trie.children(torch.tensor([0, 1, -1]), level=1).tolist()
            [[-1, 0, 1], [2, -1, -1], [-1, -1, -1]]
        """
        return self._level(level).children(nodes)

    def child(self, nodes: Tensor, codes: Tensor, level: int) -> Tensor:
        """Find the child of each node under a code of its own.

        Args:
            nodes: (…) int64 nodes at depth `level`; -1 is outside the catalogue, 0 at depth 0 the root.
            codes: (…) int64 codes; there is no child under -1.
            level: Level of the codes, 0-based.

        Returns:
            (…) int64 nodes of the next depth, -1 if the catalogue has no such prefix.

        Raises:
            ValueError: If `level` is not below `num_levels`.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> trie.child(torch.tensor([0, 1]), torch.tensor([2, 2]), level=1).tolist()
            [1, -1]
        """
        return self._level(level).child(nodes, codes)

    def allowed(self, nodes: Tensor, level: int) -> Tensor:
        """Find the codes that extend each prefix to at least one item.

        Args:
            nodes: (…) int64 nodes at depth `level`; -1 is outside the catalogue, 0 at depth 0 the root.
            level: Level of the code, 0-based.

        Returns:
            (…, K) bool; all False for node -1 and for leaves.

        Raises:
            ValueError: If `level` is not below `num_levels`.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> trie.allowed(torch.tensor([0, -1]), level=1).tolist()  # below code 0, and outside
            [[False, True, True], [False, False, False]]
        """
        return self._level(level).allowed(nodes)

    def expand(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """List the codes that extend each prefix, and the nodes they lead to.

        It is `children` without most of the empty slots.

        Args:
            nodes: (…) int64 nodes at depth `level`; -1 is outside the catalogue, 0 at depth 0 the root.
            level: Level of the code, 0-based.

        Returns:
            (…, W) int64 codes, ascending, and (…, W) int64 nodes of the next depth. Slots without a child hold code 0
            and node -1.

        Raises:
            ValueError: If `level` is not below `num_levels`.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> codes, children = trie.expand(torch.tensor([0]), level=0)
            >>> codes.tolist(), children.tolist()
            ([[0, 1]], [[0, 1]])
        """
        return self._level(level).expand(nodes)

    def is_leaf(self, nodes: Tensor, depth: int) -> Tensor:
        """Tell which nodes are complete SIDs.

        Args:
            nodes: (…) int64 nodes at `depth`.
            depth: Number of codes of their prefixes, from 0 to L.

        Returns:
            (…) bool; False for node -1.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green"], [[0, 1], [1, -1]]))  # green has one code
            >>> trie.is_leaf(torch.tensor([0, 1, -1]), depth=1).tolist()
            [False, True, False]
        """
        return nodes >= 0 if depth == self.num_levels else self._levels[depth].ends(nodes)

    def leaf_range(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Find the range of leaf ranks below each node.

        Args:
            nodes: (…) int64 nodes at `depth`.
            depth: Number of codes of their prefixes, from 0 to L.

        Returns:
            First leaf rank and one past the last, (…) int64 each; both 0 for node -1.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> first, end = trie.leaf_range(torch.tensor([0, 1]), depth=1)
            >>> first.tolist(), end.tolist()
            ([0, 2], [2, 3])
        """
        if depth == self.num_levels:
            return nodes.clamp(min=0), nodes + 1
        bounds = self._levels[depth].bounds(nodes)  # (…, 2)
        for level in self._levels[depth + 1 :]:
            bounds = level.first[bounds]
        first, end = bounds.long().unbind(-1)
        return first, end

    def codes_of(self, leaves: Tensor) -> Tensor:
        """Look up the codes of leaves.

        Args:
            leaves: (…) int64 leaf ranks.

        Returns:
            (…, L) int64 codes, -1 beyond a SID's length and for rank -1.

        Examples:
            >>> import torch
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> trie.codes_of(torch.tensor([2, -1])).tolist()
            [[1, 0], [-1, -1]]
        """
        nodes, columns = leaves, []
        for level in reversed(self._levels):
            nodes, codes = level.origin(nodes)
            columns.append(codes.masked_fill((codes == level.size) | (nodes < 0), EMPTY))
        return torch.stack(columns[::-1], dim=-1)

    def _level(self, level: int) -> TrieLevel:
        if not 0 <= level < self.num_levels:
            raise ValueError(f"level {level} is not in [0, {self.num_levels}).")
        return self._levels[level]
