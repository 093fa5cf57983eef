"""WordCoder: identifiers in tokens of an LLM, which a method writes from the catalogue.

A published identifier never changes: in append mode a method writes those of new items so that none is taken or begins
another, and new tokens are numbered behind the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.codes import EMPTY
from llmrec.sid.table import SidTable
from llmrec.sid.tokens.level_words import LevelWords
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.words.writer import Sequences, TextWriter
from llmrec.views import ItemViews


class Write(Protocol):
    """A method's way of writing identifiers."""

    def __call__(
        self,
        catalog: Catalog,
        writer: TextWriter,
        rows: Sequence[int] | np.ndarray,
        taken: frozenset[tuple[int, ...]],
        longest: int | None,
    ) -> Sequences:
        """List the tokens of the items `rows`, each ended by the same token.

        Args:
            catalog: Items.
            writer: Writes texts in tokens of the LLM.
            rows: Item rows to write.
            taken: Identifiers that other items have.
            longest: Largest number of tokens, the end included; that of the method's options when left out.
        """


@dataclass
class WordCoder:
    """Words of a method, as a part of an ItemTokenizer.

    Attributes:
        write: Writes the identifiers.
        llm: LLM whose tokenizer writes: path, Hub id or 'micro'.
        level_sizes: Number of words of each level, after `fit`.
    """

    write: Write
    llm: str
    level_sizes: list[int]

    @classmethod
    def fitted(cls, write: Write, llm: str, catalog: Catalog) -> WordCoder:
        """Make the coder of a catalogue."""
        coder = cls(write, llm, [])
        words = coder.encode(catalog, ItemViews()).words
        coder.level_sizes = [] if words is None else list(words.level_sizes)
        return coder

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads."""
        return []

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its words; see `ItemTokenizer.encode`."""
        writer = TextWriter.of(self.llm, catalog)
        sequences = self.write(catalog, writer, range(catalog.num_items), frozenset(), None)
        words, codes = LevelWords.of(sequences, writer.llm)
        return Encoded(codes, words=words)

    def append(self, table: SidTable, catalog: Catalog, new_rows: np.ndarray) -> tuple[LevelWords, np.ndarray]:
        """Write new items of a catalogue, so that none has the words of a published one.

        Args:
            table: Published identifiers.
            catalog: The published items and the new ones.
            new_rows: (A,) item rows of the new ones.

        Returns:
            Words of the published and the new items, and (A, L) int64 codes of the new ones.

        Raises:
            ValueError: If the tokenizer is another one now, or there is no room to tell a new item apart.
        """
        writer, published = TextWriter.of(self.llm, catalog), table.words
        assert published is not None, "a table of words has words"
        published.check(writer.llm)
        tokens = published.token_ids(table.all_codes)
        taken = frozenset(tuple(row[row != EMPTY].tolist()) for row in tokens)
        sequences = self.write(catalog, writer, new_rows, taken, table.num_levels)
        if not sequences:
            return published, np.empty((0, table.num_levels), np.int64)
        return published.grown(sequences, writer.llm)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"level_sizes": self.level_sizes}
