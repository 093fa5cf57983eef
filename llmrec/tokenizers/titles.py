"""Titles as identifiers: an item is written in the tokens of its title, ended by `;`.

The LLM reads histories as "Title; Title; …" and writes the next title, and a trie over all titles keeps it to the
catalogue. Nothing is learned here, and the LLM gets no new tokens. Because every title of a history ends as an answer
does, all items of a history are trained on in one pass.

Titles are cut after `max_tokens`; items that are then alike are told apart by brand and year where the
catalogue has these columns, and by a number. The report counts both.

Sources: BIGRec (arXiv:2308.08434) for titles as items; GENRE (arXiv:2010.00904) for the trie over them. Departure:
BIGRec writes titles freely and looks up the nearest item, as `--rank ground` does (llmrec/decoding/grounding/).

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.words.coder import WordCoder
from llmrec.tokenizers.words.writer import NAMELESS, Sequences, TextWriter, with_suffix
from llmrec.views import ItemViews

TELL_APART = ("brand", "year")  # columns of the catalogue


@dataclass(kw_only=True)
class Titles(ItemTokenizer):
    """Titles in the words of an LLM."""

    method: ClassVar[str] = "titles"
    needs_views: ClassVar[bool] = False
    tells_apart: ClassVar[bool] = True

    llm: str = options.llm()
    max_tokens: int = options.max_tokens(24)

    def planned_sizes(self, num_items: int) -> None:
        return None

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder = WordCoder.fitted(self.write, self.llm, catalog)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self.coder = WordCoder(self.write, self.llm, facts["level_sizes"])

    def write(
        self,
        catalog: Catalog,
        writer: TextWriter,
        rows: Sequence[int] | np.ndarray,
        taken: frozenset[tuple[int, ...]],
        longest: int | None,
    ) -> Sequences:
        """List the tokens of titles, all distinct; see `Write`."""
        room = self.max_tokens if longest is None else min(self.max_tokens, longest - 1)
        titles = [catalog.titles[row] for row in rows]
        full = writer.tokens([title if title.strip() else NAMELESS for title in titles])
        (untitled,) = writer.tokens([NAMELESS])
        full = [ids or untitled for ids in full]  # a tokenizer may drop all letters of a title
        before = frozenset(ids[:-1] for ids in taken)
        found = [ids[:room] for ids in full]
        cut = list(found)
        for name in (name for name in TELL_APART if name in catalog.items.column_names):
            values = [catalog.items[name][int(row)].as_py() for row in rows]
            alike = [place for place in _alike(found, before) if values[place] not in (None, "")]
            suffixes = writer.tokens([f"({values[place]})" for place in alike])
            for place, suffix in zip(alike, suffixes, strict=True):
                found[place] = with_suffix(full[place], suffix, room)
        found = writer.numbered(found, before, room, "({})")
        self.counts = {
            "mean_title_tokens": round(float(np.mean([len(ids) for ids in found])), 2) if found else 0,
            "truncated_titles": sum(len(ids) > room for ids in full),
            "told_apart_titles": sum(one != other for one, other in zip(found, cut, strict=True)),
            "untitled_items": sum(not title.strip() for title in titles),
        }
        return [(*ids, writer.end) for ids in found]


def _alike(sequences: Sequences, taken: frozenset[tuple[int, ...]]) -> list[int]:
    """Places of the sequences that occur more than once, or are taken."""
    counts: dict[tuple[int, ...], int] = {}
    for ids in sequences:
        counts[ids] = counts.get(ids, 0) + 1
    return [place for place, ids in enumerate(sequences) if counts[ids] > 1 or ids in taken]
