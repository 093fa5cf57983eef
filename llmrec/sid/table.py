"""SidTable: the semantic IDs of a catalogue, item row <-> codes.

Usually there is one SID per item and one item per SID. Several items may share a SID (collision policy `accept`,
published tables), and an item may have several SIDs, numbered by `alias`. SIDs may differ in length. The table is
prefix-free, so that a SID is complete exactly at the leaves of the trie: a SID that is a prefix of another one gets a
terminal code.

An identifier may be written in words, tokens that an LLM has already (`llmrec.sid.tokens.level_words`); its codes
number the words of each level.

Shapes: S SIDs, N items, L levels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import columns
from llmrec.data.item_ids import ItemIds, RowOf
from llmrec.data.requests.item_lists import find_rows
from llmrec.sid.bounds import LARGEST, MOST_LEVELS
from llmrec.sid.codes import EMPTY as EMPTY
from llmrec.sid.codes import check_codes, make_prefix_free, read_codes
from llmrec.sid.groups import SortedCodes, ordinals
from llmrec.sid.pieces.pieces import Pieces
from llmrec.sid.tokens.level_words import LevelWords

if TYPE_CHECKING:  # it takes a second to import
    from transformers import PreTrainedTokenizerBase

FILE = "sid_table.parquet"
WORDS, PIECES = "words", "pieces"  # keys of the file's metadata


class SidTable:
    """Semantic IDs of a catalogue.

    Args:
        item_ids: N distinct external ids in catalogue order; their positions are the item rows.
        codes: (S, L) integers from 0; -1 fills the levels beyond a SID's length.
        item_rows: (S,) item row of each SID; row i of `codes` belongs to item i when left out.
        level_sizes: Number of codes of each level; one more than the largest code when left out.
        words: Tokens of an LLM that the codes stand for; None for semantic IDs, which get tokens of their own.
        pieces: Pieces that the codes of all levels stand for; None for codes of a level each.

    Attributes:
        item_ids: External id of each item row, which reads like a list.
        all_codes: (S, L) int64 codes, sorted by item row.
        item_rows: (S,) int64 item row of each SID, ascending.
        lengths: (S,) int64 number of codes of each SID.
        first: (N,) int64 position of the first SID of each item.
        level_sizes: Number of codes of each level, terminal codes included.

    Raises:
        ValueError: If an item has no SID, a code is outside its level, a code follows the end of a SID, or the words
            are not one for each code, those of an item are the beginning of another's, or pieces are of no item.

    Examples:
        >>> from llmrec import SidTable
        >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]])
        >>> table.num_items, table.num_levels, table.level_sizes
        (3, 2, [2, 3])

        A SID that is a prefix of another one gets a terminal code, here 3 at level 1:

        >>> SidTable(["red", "green"], [[0, -1], [0, 2]]).all_codes.tolist()
        [[0, 3], [0, 2]]
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray | Sequence[Sequence[int]],
        item_rows: np.ndarray | Sequence[int] | None = None,
        level_sizes: Sequence[int] | None = None,
        words: LevelWords | None = None,
        pieces: Pieces | None = None,
    ):
        self.item_ids, self.words, self.pieces = ItemIds(item_ids), words, pieces
        codes = np.atleast_2d(np.asarray(codes, dtype=np.int64))
        rows = np.arange(len(codes)) if item_rows is None else np.asarray(item_rows, dtype=np.int64)
        check_codes(self.item_ids, codes, rows)
        if words is not None:
            level_sizes = words.level_sizes
        if pieces is not None:
            pieces.items(codes)
            level_sizes = [len(pieces)] * pieces.num_kinds
        sizes = list(level_sizes) if level_sizes is not None else (codes.max(axis=0) + 1).tolist()
        if not 0 < codes.shape[1] == len(sizes) <= MOST_LEVELS or max(sizes) > LARGEST:
            raise ValueError(
                f"SIDs of {codes.shape[1]} levels were given with {len(sizes)} level_sizes, the largest "
                f"{max(sizes, default=0)}; there are 1 to {MOST_LEVELS} levels, of at most {LARGEST} codes."
            )
        given = [int(size) for size in sizes]
        codes, sizes = make_prefix_free(codes, given)
        if words is not None and sizes != given:
            raise ValueError("The words of an item are the beginning of another's; end all items with the same token.")
        used = max(level + 1 for level, size in enumerate(sizes) if size)  # a level without a code is none
        codes, self.level_sizes = codes[:, :used], sizes[:used]
        too_large = np.argwhere(codes >= np.asarray(self.level_sizes))
        if len(too_large):
            sid, level = too_large[0]
            raise ValueError(
                f"item '{self.item_ids[rows[sid]]}' has code {codes[sid, level]} at level {level}, which has "
                f"{self.level_sizes[level]} codes."
            )
        order = slice(None) if (rows[1:] >= rows[:-1]).all() else np.argsort(rows, kind="stable")
        self.all_codes, self.item_rows = codes[order].copy(), rows[order].copy()
        self.lengths = (self.all_codes != EMPTY).sum(axis=1)
        self.first = np.searchsorted(self.item_rows, np.arange(len(self.item_ids)))

    @classmethod
    def of_tokens(
        cls,
        item_ids: Sequence[str],
        sequences: Sequence[Sequence[int] | np.ndarray],
        tokenizer: PreTrainedTokenizerBase | None = None,
        item_rows: np.ndarray | Sequence[int] | None = None,
    ) -> SidTable:
        """Make a table of identifiers written in tokens that an LLM has.

        Args:
            item_ids: N distinct external ids in catalogue order.
            sequences: S lists of token ids, each ended by the same token.
            tokenizer: Tokenizer of the LLM, whose names of the tokens are kept to recognise it by.
            item_rows: (S,) item row of each list; its position when left out.

        Raises:
            ValueError: As the class, or if a list is empty.

        Examples:
            >>> from llmrec import SidTable
            >>> table = SidTable.of_tokens(["ring", "ring 2"], [[7, 1], [7, 5, 1]])  # 1 ends an item
            >>> table.all_codes.tolist(), [level.tolist() for level in table.words.ids]
            ([[0, 0, -1], [0, 1, 0]], [[7], [1, 5], [1]])
        """
        words, codes = LevelWords.of(sequences, tokenizer)
        return cls(item_ids, codes, item_rows, words=words)

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue, N."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Number of codes of the longest SID, L."""
        return self.all_codes.shape[1]

    def codes(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Look up the first SID of items.

        Args:
            rows: (n,) item rows.

        Returns:
            (n, L) int64 codes, -1 beyond a SID's length.

        Raises:
            IndexError: If an item row is outside the catalogue.

        Examples:
            >>> from llmrec import SidTable
            >>> SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]]).codes([2, 0]).tolist()
            [[0, 2], [0, 1]]
        """
        return self.all_codes[self.first[np.asarray(rows, dtype=np.int64)]]

    def rows(self, codes: Sequence[int]) -> np.ndarray:
        """Look up the items that own a SID.

        Args:
            codes: Codes of the SID, without its -1 filling.

        Returns:
            (n,) int64 item rows, ascending; empty for an unknown SID.

        Examples:
            >>> from llmrec import SidTable
            >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 1]])  # red and blue share a SID
            >>> table.rows([0, 1]).tolist(), table.rows([1, 1]).tolist()
            ([0, 2], [])
        """
        return self.item_rows[self._sorted.find(codes)]

    def find_items(self, lists: Mapping[str, Sequence[str]]) -> list[np.ndarray]:
        """Convert lists of external ids to item rows.

        Args:
            lists: Maps a name for messages to a list of item_ids.

        Returns:
            (n,) int64 item rows of each list of n item_ids.

        Raises:
            ValueError: If a value is not a list of text, or it names unknown items; with the first ten such lists.

        Examples:
            >>> from llmrec import SidTable
            >>> table = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 2]])
            >>> [rows.tolist() for rows in table.find_items({"history": ["blue", "red"]})]
            [[2, 0]]
        """
        return [rows for rows, _ in find_rows(lists, self.row_of)]

    @cached_property
    def row_of(self) -> RowOf:
        """Item row of each external id."""
        return self.item_ids.row_of

    @cached_property
    def _sorted(self) -> SortedCodes:
        return SortedCodes.of(self.all_codes)

    @cached_property
    def sids_per_item(self) -> np.ndarray | None:
        """(N,) int64 number of SIDs of each item; None if every item has one."""
        counts = np.bincount(self.item_rows, minlength=self.num_items)
        return counts if counts.max(initial=1) > 1 else None

    @cached_property
    def bucket_sizes(self) -> np.ndarray:
        """(N,) int64 number of items that share each item's first SID, the item included."""
        return ordinals(self.codes(np.arange(self.num_items)))[1]

    @cached_property
    def sha256(self) -> str:
        """Hash of item ids, codes and level sizes; a checkpoint has it, to refuse another table."""
        digest = hashlib.sha256()
        self.item_ids.hash_into(digest)
        for array in (self.all_codes, self.item_rows, np.asarray(self.level_sizes)):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<i8").data)
        for meaning in (self.words, self.pieces):
            digest.update(b"" if meaning is None else meaning.sha256.encode())
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write `sid_table.parquet` (item_id, alias, length, code_0 …) into a directory.

        Args:
            directory: Existing directory.
        """
        data = {
            columns.ITEM_ID: self.item_ids if self.sids_per_item is None else self.item_ids.of(self.item_rows),
            columns.ALIAS: np.arange(len(self.item_rows)) - self.first[self.item_rows],
            columns.LENGTH: self.lengths,
            **{columns.code(level): self.all_codes[:, level] for level in range(self.num_levels)},
        }
        metadata = {"level_sizes": ",".join(map(str, self.level_sizes))}
        for name, meaning in ((WORDS, self.words), (PIECES, self.pieces)):
            metadata |= {} if meaning is None else {name: json.dumps(meaning.to_dict())}
        pq.write_table(pa.table(data).replace_schema_metadata(metadata), Path(directory) / FILE)

    @classmethod
    def load(cls, path: str | Path) -> SidTable:
        """Read `sid_table.parquet`.

        Args:
            path: The file, or the directory that holds it.

        Raises:
            ValueError: If the file is absent, unreadable, or lacks a column.

        Examples:
            >>> import tempfile
            >>> from llmrec import SidTable
            >>> table = SidTable(["red", "green"], [[0, 1], [1, 0]])
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     table.save(directory)
            ...     SidTable.load(directory).sha256 == table.sha256
            True
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        table, levels = read_codes(path)
        item_ids = table[columns.ITEM_ID].combine_chunks().dictionary_encode()
        unique, rows = item_ids.dictionary, item_ids.indices.to_numpy().astype(np.int64)
        codes = np.stack([table[name].to_numpy() for name in levels], axis=1)
        metadata = table.schema.metadata or {}
        sizes, words, pieces = (metadata.get(name.encode()) for name in ("level_sizes", WORDS, PIECES))
        try:
            level_sizes = [int(size) for size in sizes.decode().split(",")] if sizes else None
            level_words = LevelWords.from_dict(json.loads(words)) if words else None
            level_pieces = Pieces.from_dict(json.loads(pieces)) if pieces else None
            return cls(unique, codes, rows, level_sizes, level_words, level_pieces)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"'{path}' holds no SIDs: {error} Run `llmrec tokenize` again.") from error
