"""DeviceTokens: from codes to tokens and back, on the device of a model, for a search and for a loss.

Shapes: K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmrec.configs.recommend import RankBy
from llmrec.sid.codes import EMPTY
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.tokens.level_words import LevelWords


class HasLevels(Protocol):
    """A SidTable, or a trie of one."""

    @property
    def num_levels(self) -> int: ...

    @property
    def level_sizes(self) -> Sequence[int]: ...

    @property
    def num_items(self) -> int: ...

    @property
    def words(self) -> LevelWords | None: ...


class DeviceTokens:
    """Look-ups of a SidVocabulary.

    Attributes:
        level_sizes: Number of codes per level that a SidTable may use.
        starts: Token id of code 0 of each level, where codes have tokens of their own.
        block_sizes: Number of tokens per level, spare ones included.
        items: Tokens of the items, behind the blocks; None if items have none.
        segmentations: See SidVocabulary; None unless codes are pieces, which all levels share.
        words: Tokens of the codes where they are words of the LLM.
    """

    level_sizes: tuple[int, ...]
    starts: tuple[int, ...]
    block_sizes: tuple[int, ...]
    items: ItemTokens | None
    segmentations: int | None
    words: LevelWords | None

    @property
    def has_one_block(self) -> bool:
        """All levels have the same tokens, as pieces have; else each has its own."""
        return self.segmentations is not None

    @property
    def num_blocks(self) -> int:
        """Number of different blocks."""
        return 1 if self.has_one_block else len(self.starts)

    @property
    def tells_level(self) -> bool:
        """A token says which level it is of, and that it is no text."""
        return self.words is None and not self.has_one_block

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all levels, spare ones included."""
        return sum(self.block_sizes[: self.num_blocks])

    @property
    def token_range(self) -> range:
        """Token ids of all blocks, which are next to one another; none of identifiers that are words."""
        first = self.starts[0] if self.starts else 0
        return range(first, first + self.num_tokens)

    @property
    def added_range(self) -> range:
        """Token ids of all blocks and of the items behind them: all that `add_to` adds."""
        end = self.token_range.stop if self.items is None else self.items.block.stop
        return range(self.token_range.start, end)

    def block(self, level: int) -> slice:
        """Slice the tokens of the codes in use at a level out of the embedding or output matrix.

        Args:
            level: Level, 0-based.

        Examples:
            >>> from llmrec import SidVocabulary
            >>> SidVocabulary(level_sizes=(3, 4), starts=(100, 105), block_sizes=(5, 5), eos_token_id=2).block(0)
            slice(100, 103, None)
        """
        return slice(self.starts[level], self.starts[level] + self.level_sizes[level])

    def rows(self, level: int, device: torch.device) -> slice | Tensor:
        """Index the tokens of the codes in use at a level in the embedding or output matrix.

        Args:
            level: Level, 0-based.
            device: Device of the matrix.

        Returns:
            A slice where codes have tokens of their own, (K,) int64 token ids where they are words.
        """
        return self.block(level) if self.words is None else self.words.rows(level, device)

    def tokens_at(self, level: int, codes: Tensor) -> Tensor:
        """Convert codes of one level to token ids, on their device.

        Args:
            level: Level, 0-based.
            codes: (…) int64 codes, none -1.

        Returns:
            (…) int64 token ids.
        """
        return codes + self.starts[level] if self.words is None else self.words.tokens_at(level, codes)

    def codes_at(self, level: int, tokens: Tensor) -> Tensor:
        """Convert tokens to codes of one level, on their device.

        Args:
            level: Level, 0-based.
            tokens: (…) int64 token ids.

        Returns:
            (…) int64 codes, -1 for a token that is no code in use there.
        """
        if self.words is not None:
            return self.words.codes_at(level, tokens)
        codes = tokens - self.starts[level]
        return codes.masked_fill((codes < 0) | (codes >= self.level_sizes[level]), EMPTY)

    def check_words(self, table: HasLevels) -> None:
        """Refuse a table, or a trie of one, whose codes are other words.

        Raises:
            ValueError: If one of the two is of words and the other of codes, or the words differ.
        """
        if table.words == self.words:
            return
        kinds = ["words" if words is not None else "codes" for words in (table.words, self.words)]
        what = f"is of {kinds[0]}, the vocabulary of {kinds[1]}" if kinds[0] != kinds[1] else "has other words"
        raise ValueError(f"The SID table {what}. Run `llmrec extend` on the new table.")

    def check_rank(self, rank: RankBy) -> None:
        """Refuse scores to rank by that a model of these tokens does not have.

        Raises:
            ValueError: If item rows are absent, or items are not written in words.
        """
        if rank in ("items", "mixture"):
            ItemTokens.required(self.items)
        if rank == "ground" and self.words is None:
            raise ValueError("rank 'ground' looks up titles, which `llmrec tokenize --method titles` makes items of.")
