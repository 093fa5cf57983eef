"""SidTrie: the prefixes of a catalogue's semantic IDs as compact arrays on a device.

SIDs are sorted, so the nodes of a depth are in order, the children of a node are contiguous, and so are the leaves
below it. A node is its position among the nodes of its depth; a leaf's rank is its SID's position among all SIDs and,
at depth L, its node. A SID that is shorter than L codes goes on with an end code at every further level, which no
look-up shows; so the leaves below a node are found by following the offsets of its first and last child down.

Random 4 x 256 SIDs take 8.1 / 6.1 / 4.2 / 1.7 bytes per item at 10^5 / 10^6 / 10^7 / 10^8 items, apart from the item
rows of the leaves, which stay on the host (4 bytes per item, 8 where SIDs are shared).

Shapes: K codes of a level, W most children of a node of the level, E item rows, U distinct SIDs, L levels.

Source: GENRE's prefix trie (arXiv:2010.00904), stored as arrays as STATIC (arXiv:2602.22647) does, with implicit
child ids instead of stored ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmrec.decoding.trie import build as trie_build
from llmrec.decoding.trie import file as trie_file
from llmrec.decoding.trie.build import Parts, check_entries
from llmrec.decoding.trie.leaf_items import LeafItems, check_rows
from llmrec.decoding.trie.level import TrieLevel
from llmrec.sid.table import EMPTY, SidTable

ROOT = 0


class SidTrie:
    """Prefix tree over the SIDs of a table, or of some of its items. It never changes.

    Args:
        table: Semantic IDs.
        rows: Item rows to include; all when left out.
        device: Where the levels live.

    Attributes:
        level_sizes: Codes of each level.
        owners: Items of the leaves.
        leaf_items: (E,) item rows in the order of the leaves.
        leaf_starts: (U + 1,) begin of each leaf's part of `leaf_items`; None where every leaf has one item.

    Raises:
        ValueError: If no item is included.
    """

    def __init__(
        self,
        table: SidTable,
        rows: Sequence[int] | np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        codes, item_rows = table.all_codes, table.item_rows
        if rows is not None:
            keep = np.isin(item_rows, rows)
            codes, item_rows = codes[keep], item_rows[keep]
        built = self.from_codes(codes, table.level_sizes, item_rows, table.num_items, device)
        self._assemble(built._levels, built.owners, table)

    def _assemble(self, levels: list[TrieLevel], owners: LeafItems, source: SidTable | str | None) -> SidTrie:
        self._levels, self.owners, self._source = levels, owners, source
        self.level_sizes, self.num_levels = [level.size for level in levels], len(levels)
        self.leaf_items, self.leaf_starts, self.num_leaves = owners.rows, owners.starts, owners.num_leaves
        return self

    @classmethod
    def _from_parts(cls, parts: Parts, source: SidTable | str | None) -> SidTrie:
        return cls.__new__(cls)._assemble(parts.levels, parts.owners, source)

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray | Tensor,
        level_sizes: Sequence[int],
        item_rows: np.ndarray | Tensor | Sequence[int] | None = None,
        num_items: int | None = None,
        device: torch.device | str | None = None,
    ) -> SidTrie:
        """A trie of bare codes, built where they are.

        Args:
            codes: (E, L) integers in any order; -1 fills the levels beyond a SID's length.
            level_sizes: Codes of each level.
            item_rows: (E,) item row of each SID; its position when left out.
            num_items: Items of the catalogue; up to the largest item row when left out.
            device: Where the levels shall live; where the codes are when left out.

        Raises:
            ValueError: If there is no SID, a code is outside its level, a SID is the beginning of another one, or
                shapes and item rows do not fit.
        """
        level_sizes = [int(size) for size in level_sizes]
        codes, rows = check_entries(codes, level_sizes, item_rows)
        largest = int(rows.max())
        num_items = largest + 1 if num_items is None else num_items
        if largest >= num_items:
            raise ValueError(f"item_rows go up to {largest}, but there are {num_items} items.")
        trie = cls._from_parts(trie_build.build(codes, level_sizes, rows, num_items), None)
        return trie if device is None else trie.to(device)

    @property
    def device(self) -> torch.device:
        return self._levels[0].first.device

    @property
    def num_items(self) -> int:
        """Items of the catalogue, of which the trie may hold a part."""
        return self.owners.num_items

    @property
    def num_bytes(self) -> int:
        """Bytes on the device: offsets, codes and bitmaps. Those of the items, on the host: `owners.num_bytes`."""
        return sum(level.num_bytes for level in self._levels)

    def width(self, level: int) -> int:
        """Columns that `expand` returns: the most children that a node has, or K where it may be close to it."""
        return self._level(level).width

    def has_leaves(self, depth: int) -> bool:
        """Whether some SID has exactly `depth` codes; a constant of the trie."""
        ends = [level.num_ends for level in self._levels] + [self.num_leaves]
        return depth > 0 and ends[depth] > ends[depth - 1]

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
        return self._level(level).children(nodes)

    def allowed(self, nodes: Tensor, level: int) -> Tensor:
        """Codes that extend each prefix to at least one item.

        Args:
            nodes: (…) int64, nodes that have chosen `level` codes; -1 is outside the catalogue.
            level: Level of the code to be chosen, 0-based.

        Returns:
            (…, K) bool. A row is all False where the node is -1 or a leaf.

        Raises:
            ValueError: If `level` is not below `num_levels`.
        """
        return self._level(level).allowed(nodes)

    def expand(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Codes that extend each prefix, and where they lead; as `children` without most of the empty slots.

        Args:
            nodes: (…) int64, nodes that have chosen `level` codes; -1 is outside the catalogue.
            level: Level of the code to be chosen, 0-based.

        Returns:
            (…, W) int64 codes, ascending, and (…, W) int64 nodes of the next depth. Slots without a child hold code 0
            and node -1.

        Raises:
            ValueError: If `level` is not below `num_levels`.
        """
        return self._level(level).expand(nodes)

    def is_leaf(self, nodes: Tensor, depth: int) -> Tensor:
        """Whether nodes that have chosen `depth` codes are complete SIDs; False for -1."""
        return nodes >= 0 if depth == self.num_levels else self._levels[depth].ends(nodes)

    def leaf_range(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """First and one past the last leaf rank below nodes at `depth`, (…) int64 each; both 0 for -1."""
        if depth == self.num_levels:
            return nodes.clamp(min=0), nodes + 1
        bounds = self._levels[depth].bounds(nodes)  # (…, 2)
        for level in self._levels[depth + 1 :]:
            bounds = level.first[bounds]
        return bounds.long().unbind(-1)

    def codes_of(self, leaves: Tensor) -> Tensor:
        """Codes of leaves: (…) ranks -> (…, L) int64, -1 beyond a SID's length and for rank -1."""
        nodes, columns = leaves, []
        for level in reversed(self._levels):
            nodes, codes = level.origin(nodes)
            columns.append(codes.masked_fill((codes == level.size) | (nodes < 0), EMPTY))
        return torch.stack(columns[::-1], dim=-1)

    def items(self, rank: int) -> np.ndarray:
        """Item rows that own the SID of a leaf, in ascending order."""
        return self.owners.of(rank)

    def leaves_of(self, rows: np.ndarray) -> np.ndarray:
        """Sorted ranks of the leaves whose items are all among `rows`; items that the trie lacks are ignored."""
        rows = np.unique(check_rows(rows, self.num_items))
        leaves, counts = np.unique(self.owners.entries(rows)[1], return_counts=True)
        return leaves[counts == self.owners.num_entries(leaves)]

    def leaves_with(self, rows: np.ndarray) -> np.ndarray:
        """Sorted ranks of the leaves that own at least one item of `rows`."""
        return np.unique(self.owners.entries(check_rows(rows, self.num_items))[1])

    def with_items(self, rows: Sequence[int] | np.ndarray) -> SidTrie:
        """The trie of some of its items; those that it does not hold are ignored.

        Raises:
            ValueError: If it holds none of them, or one is outside the catalogue.
        """
        return self._select(self.owners.is_among(rows))

    def remove(self, rows: Sequence[int] | np.ndarray) -> SidTrie:
        """The trie without some of its items; those that it does not hold are ignored.

        Raises:
            ValueError: If it holds no other, or one is outside the catalogue.
        """
        return self._select(~self.owners.is_among(rows))

    def append(self, codes: np.ndarray | Tensor, item_rows: np.ndarray | Tensor | Sequence[int]) -> SidTrie:
        """The trie with further items. A SID that it has is shared by its items and the new one.

        Args:
            codes: (E, L) integers in any order; -1 fills the levels beyond a SID's length.
            item_rows: (E,) item row of each SID.

        Raises:
            ValueError: As in `from_codes`.
        """
        codes, rows = check_entries(codes, self.level_sizes, item_rows)
        num_items = max(self.num_items, int(rows.max()) + 1)
        if self.device.type != "cpu":
            codes, rows = torch.as_tensor(codes, device=self.device), rows.to(self.device)
        return self._from_parts(trie_build.append(Parts(self._levels, self.owners), codes, rows, num_items), None)

    def to(self, device: torch.device | str) -> SidTrie:
        return self._from_parts(Parts([level.to(device) for level in self._levels], self.owners), self._source)

    @property
    def table_sha256(self) -> str | None:
        """Hash of the SidTable whose items, or part of them, these are; None for bare or appended codes."""
        return self._source.sha256 if isinstance(self._source, SidTable) else self._source

    def check_table(self, table: SidTable) -> None:
        """Refuse a table that this trie was not built from.

        Raises:
            ValueError: If it was built from another one, or from bare codes.
        """
        if table is not self._source and table.sha256 != self.table_sha256:
            built = "bare codes" if self.table_sha256 is None else f"another SidTable ({self.table_sha256[:12]}…)"
            raise ValueError(f"The trie was built from {built}, not from this SidTable ({table.sha256[:12]}…).")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file that `load` maps into memory."""
        trie_file.write(path, Parts(self._levels, self.owners), self.table_sha256)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> SidTrie:
        """Read what `save` wrote; on CPU the file is mapped, and read as it is used.

        Raises:
            ValueError: If the file is absent, of another format, or its arrays do not fit together.
        """
        return cls._from_parts(*trie_file.read(path)).to(device)

    def _level(self, level: int) -> TrieLevel:
        if not 0 <= level < self.num_levels:
            raise ValueError(f"level {level} is not in [0, {self.num_levels}).")
        return self._levels[level]

    def _select(self, is_kept: np.ndarray) -> SidTrie:
        if not is_kept.any():
            raise ValueError("A trie needs at least one item; none of its items would be left.")
        return self._from_parts(trie_build.select(Parts(self._levels, self.owners), is_kept), self._source)
