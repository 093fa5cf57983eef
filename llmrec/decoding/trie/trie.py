"""SidTrie: the prefixes of a catalogue's semantic IDs as compact arrays on a device.

SIDs are sorted, so the nodes of a depth are in order, the children of a node are contiguous, and so are the leaves
below it. A node is its position among the nodes of its depth. The rank of a leaf is its SID's position among all SIDs;
at depth L, it is the node itself. A SID that is shorter than L codes continues with an end code at every further level,
which no look-up shows. So the leaves below a node are found by following its first and last child down.

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
from llmrec.decoding.trie.leaf_items import LeafItems
from llmrec.decoding.trie.level import TrieLevel
from llmrec.decoding.trie.lookups import TrieLookups
from llmrec.sid.table import SidTable
from llmrec.sid.tokens.level_words import LevelWords


class SidTrie(TrieLookups):
    """Prefix tree over the SIDs of a table, or of some of its items. It never changes.

    Args:
        table: Semantic IDs.
        rows: Item rows to include; all when left out.
        device: Device of the levels.

    Attributes:
        level_sizes: Number of codes of each level.
        num_levels: Number of levels, L.
        num_leaves: Number of distinct SIDs, U.
        owners: Items of the leaves.
        leaf_items: (E,) item rows in the order of the leaves.
        leaf_starts: (U + 1,) begin of each leaf's part of `leaf_items`; None if every leaf has one item.
        words: Tokens of an LLM that the codes stand for; None for semantic IDs.

    Raises:
        ValueError: If no item is included.

    Source: GENRE's prefix trie (arXiv:2010.00904), stored as arrays as STATIC (arXiv:2602.22647) does.

    Examples:
        >>> from llmrec import SidTable, SidTrie
        >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]])
        >>> trie = SidTrie(table)
        >>> trie.num_leaves, trie.level_sizes
        (3, [2, 3])
        >>> SidTrie(table, rows=[0, 2]).num_leaves
        2
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
        self._assemble(built._levels, built.owners, table, table.words)

    def _assemble(
        self, levels: list[TrieLevel], owners: LeafItems, source: SidTable | str | None, words: LevelWords | None
    ) -> SidTrie:
        super().__init__(levels, owners.num_leaves)
        self.owners, self.leaf_items, self.leaf_starts, self._source = owners, owners.rows, owners.starts, source
        self.words = words
        return self

    @staticmethod
    def _from_parts(parts: Parts, source: SidTable | str | None, words: LevelWords | None = None) -> SidTrie:
        return SidTrie.__new__(SidTrie)._assemble(parts.levels, parts.owners, source, words)

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray | Tensor,
        level_sizes: Sequence[int],
        item_rows: np.ndarray | Tensor | Sequence[int] | None = None,
        num_items: int | None = None,
        device: torch.device | str | None = None,
    ) -> SidTrie:
        """Build a trie of bare codes, on their device.

        Args:
            codes: (E, L) integers in any order; -1 fills the levels beyond a SID's length.
            level_sizes: Number of codes of each level.
            item_rows: (E,) item row of each SID; its position when left out.
            num_items: Number of items of the catalogue; one more than the largest item row when left out.
            device: Device of the levels; that of the codes when left out.

        Returns:
            The trie; it knows no table.

        Raises:
            ValueError: If there is no SID, a code is outside its level, a SID is the beginning of another one, or
                shapes and item rows do not fit.

        Examples:
            >>> import torch
            >>> from llmrec import SidTrie
            >>> trie = SidTrie.from_codes(torch.tensor([[0, 1], [1, 0], [0, 1]]), level_sizes=[2, 2])
            >>> trie.num_leaves, trie.items(0).tolist()  # items 0 and 2 share a SID
            (2, [0, 2])
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
    def num_items(self) -> int:
        """Number of items of the catalogue; the trie may hold a part of them."""
        return self.owners.num_items

    def items(self, rank: int) -> np.ndarray:
        """Look up the items that own the SID of a leaf.

        Args:
            rank: Leaf rank, from 0 to U - 1.

        Returns:
            (n,) item rows, ascending; at least one.

        Examples:
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 1]]))
            >>> trie.items(0).tolist()  # red and blue share a SID
            [0, 2]
        """
        return self.owners.of(rank)

    def with_items(self, rows: Sequence[int] | np.ndarray) -> SidTrie:
        """Keep some items of the trie.

        Args:
            rows: Item rows to keep; those that the trie does not hold are ignored.

        Returns:
            A trie of these items; this one does not change.

        Raises:
            ValueError: If the trie holds none of them, or one is outside the catalogue.

        Examples:
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> trie.with_items([1, 2]).leaf_items.tolist()  # in the order of their SIDs
            [2, 1]
        """
        return self._select(self.owners.is_among(rows))

    def remove(self, rows: Sequence[int] | np.ndarray) -> SidTrie:
        """Remove some items from the trie.

        Args:
            rows: Item rows to remove; those that the trie does not hold are ignored.

        Returns:
            A trie of the other items; this one does not change.

        Raises:
            ValueError: If no other item is left, or an item row is outside the catalogue.

        Examples:
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]))
            >>> trie.remove([0]).num_leaves
            2
        """
        return self._select(~self.owners.is_among(rows))

    def append(self, codes: np.ndarray | Tensor, item_rows: np.ndarray | Tensor | Sequence[int]) -> SidTrie:
        """Add items to the trie. A SID that the trie has already is then shared.

        Args:
            codes: (E, L) integers in any order; -1 fills the levels beyond a SID's length.
            item_rows: (E,) item row of each SID.

        Returns:
            A trie of the old and the new items; this one does not change.

        Raises:
            ValueError: As in `from_codes`.

        Examples:
            >>> import numpy as np
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green"], [[0, 1], [1, 0]]))
            >>> larger = trie.append(np.array([[0, 0]]), item_rows=[2])
            >>> larger.leaf_items.tolist()
            [2, 0, 1]
        """
        codes, rows = check_entries(codes, self.level_sizes, item_rows)
        num_items = max(self.num_items, int(rows.max()) + 1)
        if self.device.type != "cpu":
            codes, rows = torch.as_tensor(codes, device=self.device), rows.to(self.device)
        parts = trie_build.append(Parts(self._levels, self.owners), codes, rows, num_items)
        return self._from_parts(parts, None, self.words)

    def to(self, device: torch.device | str) -> SidTrie:
        """Copy the trie to a device.

        Args:
            device: Device of the levels; the items stay on the host.
        """
        parts = Parts([level.to(device) for level in self._levels], self.owners)
        return self._from_parts(parts, self._source, self.words)

    @property
    def table_sha256(self) -> str | None:
        """Hash of the SidTable that the trie was built from; None for bare or appended codes."""
        return self._source.sha256 if isinstance(self._source, SidTable) else self._source

    def check_table(self, table: SidTable) -> None:
        """Refuse a table that this trie was not built from.

        Args:
            table: Table whose items answers are read with.

        Raises:
            ValueError: If the trie was built from another table, or from bare codes.
        """
        if table is not self._source and table.sha256 != self.table_sha256:
            built = "bare codes" if self.table_sha256 is None else f"another SidTable ({self.table_sha256[:12]}…)"
            raise ValueError(f"The trie was built from {built}, not from this SidTable ({table.sha256[:12]}…).")

    def save(self, path: str | Path) -> None:
        """Write the trie as one safetensors file, which `load` maps into memory.

        Args:
            path: Path of the file.
        """
        trie_file.write(path, Parts(self._levels, self.owners), self.table_sha256, self.words)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> SidTrie:
        """Read a trie that `save` wrote. On CPU the file is mapped, and read as it is used.

        Args:
            path: Path of the file.
            device: Device of the levels.

        Raises:
            ValueError: If the file is absent, of another format, or its arrays do not fit together.

        Examples:
            >>> import tempfile
            >>> from llmrec import SidTable, SidTrie
            >>> trie = SidTrie(SidTable(["red", "green"], [[0, 1], [1, 0]]))
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     trie.save(f"{directory}/trie.safetensors")
            ...     SidTrie.load(f"{directory}/trie.safetensors").num_leaves
            2
        """
        return cls._from_parts(*trie_file.read(path)).to(device)

    def _select(self, is_kept: np.ndarray) -> SidTrie:
        if not is_kept.any():
            raise ValueError("A trie needs at least one item; none of its items would be left.")
        parts = trie_build.select(Parts(self._levels, self.owners), is_kept)
        return self._from_parts(parts, self._source, self.words)
