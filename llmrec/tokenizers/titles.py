"""Titles as identifiers: an item is written in the tokens of its title, ended by `;`.

The LLM reads histories as "Title; Title; …" and writes the next title, and a trie over all titles keeps it to the
catalogue. Nothing is learned here, and the LLM gets no new tokens. Because every title of a history ends as an answer
does, all items of a history are trained on in one pass.

A token of a text depends on what stands before it, the space in most tokenizers. So a title is tokenized behind the end
of another one, as it stands in a history, and a tokenizer that would merge the two is refused. A `;` within a title is
read as a comma. Titles are cut after `max_tokens`; items that are then alike are told apart by brand and year where the
catalogue has these columns, and by a number. The report counts both.

Sources: BIGRec (arXiv:2308.08434) for titles as items; GENRE (arXiv:2010.00904) for the trie over them. Departure:
BIGRec writes titles freely and looks up the nearest item.

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmrec.configs import ExtendConfig
from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.tokens.llm_tokenizer import MICRO, load_tokenizer, word_tokenizer
from llmrec.sid.tokens.ordinary_text import encode_texts
from llmrec.sid.tokens.template import end_of_sequence
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.word_coder import Sequences, WordCoder
from llmrec.views import ItemViews

END = ";"
ESCAPE = str.maketrans({END: ",", "\uff1b": ","})  # also the full-width one, which some tokenizers read as the other
UNTITLED = "item"
TELL_APART = ("brand", "year")  # columns of the catalogue


@dataclass(frozen=True)
class TitleWriter:
    """Titles in the tokens of an LLM.

    Args:
        llm: Tokenizer of the LLM.

    Attributes:
        end: Token that ends a title: that of `;`, or end-of-sequence where the tokenizer has no such token.

    Raises:
        ValueError: If the tokenizer has neither.
    """

    llm: PreTrainedTokenizerBase

    @cached_property
    def end(self) -> int:
        """Token that ends every title."""
        ids = encode_texts([END], self.llm)[0].tolist()
        return ids[0] if len(ids) == 1 and ids[0] != self.llm.unk_token_id else end_of_sequence(self.llm)

    def tokens(self, titles: Sequence[str]) -> Sequences:
        """Tokenize titles as they stand in a history, without the end.

        Raises:
            ValueError: If the tokenizer merges a title with the end of the title before it.
        """
        before = encode_texts([END], self.llm)[0].tolist()
        texts = [f"{END} {' '.join(title.translate(ESCAPE).split())}" for title in titles]
        found = [ids.tolist() for ids in encode_texts(texts, self.llm)]
        merged = [title for title, ids in zip(titles, found, strict=True) if ids[: len(before)] != before]
        if merged:
            raise ValueError(
                f"This tokenizer merges {len(merged)} of {len(titles)} titles with the '{END}' before them, first "
                f"'{merged[0]}', so that they are other tokens in a history than alone. Use an LLM with another "
                "tokenizer, or change these titles."
            )
        return [tuple(token for token in ids[len(before) :] if token != self.end) for ids in found]


@dataclass(kw_only=True)
class Titles(ItemTokenizer):
    """Titles in the words of an LLM."""

    method: ClassVar[str] = "titles"
    needs_views: ClassVar[bool] = False
    tells_apart: ClassVar[bool] = True

    llm: str = option("LLM whose tokenizer writes the titles, as `model` of `llmrec extend`: path, Hub id or 'micro'.")
    max_tokens: int = option("Largest number of tokens of a title.", 24, least=8, most=60)

    def planned_sizes(self, num_items: int) -> None:
        return None

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.coder = WordCoder.fitted(self.write, self.tokenizer_of, catalog)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self.coder = WordCoder(self.write, self.tokenizer_of, facts["level_sizes"])

    def tokenizer_of(self, catalog: Catalog) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the LLM, or make that of 'micro' as `llmrec extend` does unless told otherwise."""
        if self.llm == MICRO:
            return word_tokenizer(catalog.titles, ExtendConfig.micro_words)
        return load_tokenizer(self.llm)

    def write(
        self, catalog: Catalog, rows: Sequence[int] | np.ndarray, taken: frozenset[tuple[int, ...]], longest: int | None
    ) -> Sequences:
        """List the tokens of titles, all distinct; see `Write`."""
        writer = TitleWriter(self.tokenizer_of(catalog))
        room = self.max_tokens if longest is None else min(self.max_tokens, longest - 1)
        titles = [catalog.titles[row] for row in rows]
        full = writer.tokens([title if title.strip() else UNTITLED for title in titles])
        (untitled,) = writer.tokens([UNTITLED])
        full = [ids or untitled for ids in full]  # a tokenizer may drop all letters of a title
        before = frozenset(ids[:-1] for ids in taken)
        found = [ids[:room] for ids in full]
        cut = list(found)
        for name in (name for name in TELL_APART if name in catalog.items.column_names):
            values = [catalog.items[name][int(row)].as_py() for row in rows]
            alike = [place for place in _alike(found, before) if values[place] not in (None, "")]
            suffixes = writer.tokens([f"({values[place]})" for place in alike])
            for place, suffix in zip(alike, suffixes, strict=True):
                found[place] = _with_suffix(full[place], suffix, room)
        found = _numbered(found, before, writer, room)
        self.counts = {
            "mean_title_tokens": round(float(np.mean([len(ids) for ids in found])), 2) if found else 0,
            "truncated_titles": sum(len(ids) > room for ids in full),
            "told_apart_titles": sum(one != other for one, other in zip(found, cut, strict=True)),
            "untitled_items": sum(not title.strip() for title in titles),
        }
        return [(*ids, writer.end) for ids in found]


def _numbered(sequences: Sequences, taken: frozenset[tuple[int, ...]], writer: TitleWriter, room: int) -> Sequences:
    """Tell the second and further items of a title apart by numbers, which make no other item's title."""
    used, seen, numbered = taken.union(sequences), set(taken), []
    last: dict[tuple[int, ...], int] = {}
    for ids in sequences:
        own, number = ids, last.get(ids, 1)
        while own in seen or (own != ids and own in used):
            number += 1
            (suffix,) = writer.tokens([f"({number})"])
            if len(suffix) > room:
                raise ValueError(
                    f"{number} titles are alike, and in {room} tokens there is no room for a number to tell them "
                    "apart; run `llmrec tokenize` without append, with a larger max_tokens, and train again."
                )
            own = _with_suffix(ids, suffix, room)
        last[ids] = number
        seen.add(own)
        numbered.append(own)
    return numbered


def _alike(sequences: Sequences, taken: frozenset[tuple[int, ...]]) -> list[int]:
    """Places of the sequences that occur more than once, or are taken."""
    counts: dict[tuple[int, ...], int] = {}
    for ids in sequences:
        counts[ids] = counts.get(ids, 0) + 1
    return [place for place, ids in enumerate(sequences) if counts[ids] > 1 or ids in taken]


def _with_suffix(ids: tuple[int, ...], suffix: tuple[int, ...], room: int) -> tuple[int, ...]:
    """Put a suffix behind as much of a title as leaves room for it; a longer suffix is cut, too."""
    return (*ids[: max(0, room - len(suffix))], *suffix)[:room]
