"""Token states: what a frozen text encoder makes of every token of an item's text, kept for all items of a catalogue.

The encoder and the template are those of the text view, so codes and vectors read the same text.

Shapes: N items, n of some, S tokens of all of them, T of the longest of some, D dimension of a state, V distinct tokens
of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.console import progress
from llmrec.runtime.device import resolve_device
from llmrec.sid.tokens.ordinary_text import break_markers
from llmrec.views import ItemViews
from llmrec.views.text import CHUNK, TFIDF, load_encoder, markers_of, render_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH = 32  # texts at once


class TextSource(NamedTuple):
    """Encoder and template that a text view was made by.

    Attributes:
        view: Name of the view.
        encoder: Hub id or directory of a sentence-transformers model.
        template: Text with columns of items.parquet in braces.
    """

    view: str
    encoder: str
    template: str

    @classmethod
    def of(cls, views: ItemViews) -> TextSource:
        """Read it from the provenance of the one view that is given.

        Raises:
            ValueError: If there are several views, or the view was not made by a sentence-transformers model.
        """
        if len(views) != 1:
            raise ValueError(
                f"method 'lm_indexer' reads the tokens of one text view and was given {list(views)}; set view_names to "
                "text."
            )
        ((name, view),) = views.items()
        encoder, template = view.provenance.get("encoder"), view.provenance.get("template")
        if encoder in (None, TFIDF) or template is None:
            raise ValueError(
                f"method 'lm_indexer' reads what a language model makes of every token, and view '{name}' is of "
                f"encoder {encoder!r}. Run `llmrec embed --views text --text-encoder` with a sentence-transformers "
                "model, such as sentence-transformers/all-MiniLM-L6-v2."
            )
        return cls(name, encoder, template)


class TokenBatch(NamedTuple):
    """Texts of some items.

    Attributes:
        states: (n, T, D) float32, 0 behind the end of a text.
        places: (n, T) int64 place of each token's id in the vocabulary of the catalogue, 0 behind the end.
        is_token: (n, T) bool; the first place of an item without text counts as a token, of state 0.
    """

    states: Tensor
    places: Tensor
    is_token: Tensor


@dataclass(frozen=True)
class TokenStates:
    """States of the texts of a catalogue.

    Attributes:
        states: (S, D) float16, one item after another.
        places: (S,) int64 place of each token's id in `word_vectors`.
        first: (N + 1,) int64; the tokens of item row r stand at `first[r]` to `first[r + 1]`.
        word_vectors: (V, D) float32 vectors, without context, of the distinct tokens of the texts.
    """

    states: Tensor
    places: Tensor
    first: Tensor
    word_vectors: Tensor

    @classmethod
    def read(cls, catalog: Catalog, source: TextSource, max_tokens: int, device: str) -> TokenStates:
        """Run the encoder over the texts of a catalogue.

        Args:
            catalog: Items.
            source: Encoder and template.
            max_tokens: Largest number of tokens of a text, with those that the encoder puts around it.
            device: Where the encoder runs and the states are kept.

        Raises:
            ValueError: If the encoder cannot be loaded, or no item has text.
        """
        encoder, texts = load_encoder(source.encoder, device), render_texts(catalog, source.template)
        longest = encoder.max_seq_length
        encoder.max_seq_length = max_tokens if longest is None else min(max_tokens, longest)
        where = resolve_device(device)
        states: list[Tensor] = []
        ids: list[Tensor] = []
        sizes = np.zeros(len(texts), np.int64)
        rows = np.flatnonzero([bool(text) for text in texts])
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        for chunk in progress(chunks, "Reading tokens", unit=f"chunks of {CHUNK} items"):
            for row, (of_tokens, token_ids) in zip(chunk, _encode(encoder, [texts[row] for row in chunk]), strict=True):
                states.append(of_tokens.to(where, torch.float16))
                ids.append(token_ids.to(where))
                sizes[row] = len(token_ids)
        distinct_V, places = torch.cat(ids).unique(return_inverse=True)
        table_WD = _word_vectors(encoder)
        first = torch.from_numpy(np.append(0, np.cumsum(sizes))).to(where)
        return cls(torch.cat(states), places, first, table_WD[distinct_V.to(table_WD.device)].to(where))

    @property
    def has_text(self) -> Tensor:
        """(N,) bool."""
        return self.first[1:] > self.first[:-1]

    def of(self, rows_n: Tensor) -> TokenBatch:
        """Lay the tokens of item rows (n,) side by side."""
        begin_n, end_n = self.first[rows_n], self.first[rows_n + 1]
        longest = max(1, int((end_n - begin_n).max()))
        place_nT = begin_n[:, None] + torch.arange(longest, device=begin_n.device)
        is_real_nT = place_nT < end_n[:, None]
        place_nT = torch.where(is_real_nT, place_nT, 0)
        states_nTD = self.states[place_nT].float() * is_real_nT[:, :, None]
        is_token_nT = is_real_nT.clone()
        is_token_nT[:, 0] = True  # attention to nothing has no value
        return TokenBatch(states_nTD, self.places[place_nT] * is_real_nT, is_token_nT)


def _encode(encoder: SentenceTransformer, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """(T, D) states and (T,) ids of the tokens of each text, without those that the encoder puts around a text."""
    around = {encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id}
    around |= {encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id}
    found: list[tuple[Tensor, Tensor]] = []
    plain = break_markers(texts, markers_of(encoder))
    # `encode(output_value=None)` says the same, but fails on batches of five texts in sentence-transformers 6.0.
    prepare = getattr(encoder, "preprocess", None) or encoder.tokenize
    for start in range(0, len(plain), BATCH):
        read = prepare(plain[start : start + BATCH])
        there = {name: part.to(encoder.device) if isinstance(part, Tensor) else part for name, part in read.items()}
        with torch.no_grad():
            states_BTD = encoder(there)["token_embeddings"]
        ids_BT, kept_BT = read["input_ids"], read["attention_mask"].bool()
        for token_id in around - {None}:
            kept_BT &= ids_BT != token_id
        found += [
            (states_TD[kept_T], ids_T[kept_T])
            for states_TD, ids_T, kept_T in zip(states_BTD.cpu(), ids_BT, kept_BT, strict=True)
        ]
    return found


def _word_vectors(encoder: SentenceTransformer) -> Tensor:
    """(W, D) float32 vectors of the encoder's whole vocabulary, without context."""
    from transformers import PreTrainedModel  # it takes a second to import

    model = next(module for module in encoder.modules() if isinstance(module, PreTrainedModel))
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor), "an embedding has one matrix"
    return weight.detach().float()
