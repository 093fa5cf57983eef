"""Keywords as identifiers: an item is written in the words that set its text apart, ended by `;`.

The words of an item's text are ranked by TF-IDF over the catalogue. An identifier has the first `min_words` of them. An
item whose identifier another has already takes further words, up to ten, and then a number. Shorter identifiers are
given first, and among equally long ones those of earlier items, so the same catalogue has the same identifiers. The
report counts who needed more. Nothing is learned, the LLM gets no new tokens, and all items of a history are trained on
in one pass.

A word of one item, a number and a single letter come after all other words of a text: other items teach nothing about
them. Words that the LLM's tokenizer does not know are left out. Words are runs of letters and digits, so a language
that is written without spaces has few of them; `titles` takes its texts whole.

Source: IDGenRec (arXiv:2403.19021). Departures: there a T5 that was trained to write tags makes the identifiers, by
diverse beam search until one is free, and trains in turns with the recommender. With the released learning rate of 1e-8
it stays where it is, so that its identifiers are in effect as fixed as these (docs/papers.md).

Shapes: N items, W words.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.words.coder import WordCoder
from llmrec.tokenizers.words.writer import NAMELESS, Sequences, TextWriter
from llmrec.views import ItemViews
from llmrec.views.tfidf import word_vectorizer

MOST_WORDS = 10  # IDGenRec: identifiers of up to ten tokens


@dataclass(kw_only=True)
class Keywords(ItemTokenizer):
    """Words of an item's text with the largest TF-IDF, in the tokens of an LLM."""

    method: ClassVar[str] = "keywords"
    needs_views: ClassVar[bool] = False
    tells_apart: ClassVar[bool] = True

    llm: str = options.llm()
    min_words: int = option(
        "Number of keywords; an item whose keywords another item has takes more, up to 10.", 3, least=1, most=MOST_WORDS
    )
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
        """List the tokens of keywords, all distinct; see `Write`."""
        room = self.max_tokens if longest is None else min(self.max_tokens, longest - 1)
        ranked = ranked_words(catalog, writer)
        words = [ranked[row] for row in rows]
        full: Sequences = [()] * len(words)
        used, alike = {ids[:-1] for ids in taken}, list(range(len(words)))
        num_alike = []
        for count in range(self.min_words, MOST_WORDS + 1):
            asked, alike = alike, []
            written = writer.tokens([" ".join(words[place][:count]) or NAMELESS for place in asked])
            for place, ids in zip(asked, written, strict=True):
                full[place] = ids
                if ids[:room] in used:
                    alike.append(place)
                used.add(ids[:room])
            num_alike.append(len(alike))
        found = [ids[:room] for ids in full]
        numbered = writer.numbered([found[place] for place in alike], frozenset(used), room)
        for place, ids in zip(alike, numbered, strict=True):
            found[place] = ids
        self.counts = {
            "mean_keyword_tokens": round(float(np.mean([len(ids) for ids in found])), 2) if found else 0,
            "items_with_further_words": num_alike[0] - len(alike),
            "items_with_a_number": len(alike),
            "items_without_a_word": sum(not own for own in words),
            "truncated_items": sum(len(ids) > room for ids in full),
        }
        return [(*ids, writer.end) for ids in found]


def ranked_words(catalog: Catalog, writer: TextWriter) -> list[list[str]]:
    """List up to ten words of each item's text, or of its title where it has no text, by TF-IDF.

    Args:
        catalog: Items.
        writer: Its tokenizer has to know the words.

    Returns:
        Words of each item row; none where the tokenizer knows none.

    Raises:
        ValueError: If no item has a word, or the tokenizer knows none.
    """
    has_text = columns.TEXT in catalog.items.column_names
    texts = catalog.items[columns.TEXT].to_pylist() if has_text else catalog.titles
    vectorizer = word_vectorizer()
    try:
        weights = vectorizer.fit_transform([text or title for text, title in zip(texts, catalog.titles, strict=True)])
    except ValueError as error:
        raise ValueError(
            f"No item of {catalog.source}/items.parquet has a word in its text or title, so there are no keywords; "
            "use a method that reads no text, such as atomic."
        ) from error
    names = vectorizer.get_feature_names_out()
    known = [writer.llm.unk_token_id not in ids for ids in writer.tokens(names.tolist())]
    if not any(known):
        raise ValueError(
            f"The tokenizer knows none of the {len(names)} words of the texts, first '{names[0]}'; use an LLM of their "
            "language, or other than 'micro', which knows the words of titles alone."
        )
    weights, names = weights[:, known], names[known]
    shared_W = np.bincount(weights.indices, minlength=len(names)) > 1
    last_W = ~(shared_W & [len(name) > 1 and not name.isdigit() for name in names])
    found = []
    for start, stop in itertools.pairwise(weights.indptr):
        own = weights.indices[start:stop]
        order = np.lexsort((own, -weights.data[start:stop], last_W[own]))
        found.append(names[own[order[:MOST_WORDS]]].tolist())
    return found
