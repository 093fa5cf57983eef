"""One vector for each item: the mean of the embeddings of its codes' tokens.

A model with a head reads items so. `read_items` lets the embedding of a model take the ids that
`llmrec.model.history` gives items; everything behind the embedding (dropout, positions, layers) sees
ordinary input. No vector of an item is stored, so an item that is appended is read at once.

Source: VQ-Rec (arXiv:2210.12316) and RPG (arXiv:2506.05781), which read items alike.

Shapes: N items, L levels, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llmrec.model.backbone import causal_lm
from llmrec.model.trained_rows import with_trained_rows


def mean_rows(embedding: nn.Module, sids: range, tokens_nL: Tensor) -> Tensor:
    """Average the rows of the codes of some items.

    Args:
        embedding: Embedding of a causal LM, or PEFT's wrapper of it.
        sids: Token ids of all codes, beyond which no row is read.
        tokens_nL: (n, L) int64 token ids of the items' SIDs.

    Returns:
        (n, D).
    """
    rows = with_trained_rows(embedding, slice(sids.start, sids.stop))
    total = torch.zeros(tokens_nL.shape[0], rows.shape[1], dtype=rows.dtype, device=rows.device)
    for tokens_n in (tokens_nL - sids.start).unbind(1):  # one after another: all at once would take L times the memory
        total = total + functional.embedding(tokens_n, rows)
    return total / tokens_nL.shape[1]


@dataclass
class MeansOfCodes:
    """Vectors of items that are the means of the rows of their codes.

    Args:
        embedding: Embedding of a causal LM, or PEFT's wrapper of it.
        sids: Token ids of all codes.
        tokens_NL: (N, L) int64 token ids of each item's SID.
    """

    embedding: nn.Module
    sids: range
    tokens_NL: Tensor

    def __call__(self, rows_n: Tensor) -> Tensor:
        """(n,) item rows -> (n, D)."""
        if self.tokens_NL.device != rows_n.device:
            self.tokens_NL = self.tokens_NL.to(rows_n.device)  # once: the Trainer moves the model after it was made
        return mean_rows(self.embedding, self.sids, self.tokens_NL[rows_n])


class ItemReader:
    """Forward pass of an embedding that also takes the ids of items.

    Args:
        embedding: Embedding of a causal LM, or PEFT's wrapper of it.
        vectors: Function of (n,) item rows that returns their (n, D) vectors.
        start: Id of item row 0; that of row r is `start + r`.
    """

    def __init__(self, embedding: nn.Module, vectors: Callable[[Tensor], Tensor], start: int):
        earlier = vars(embedding).get("forward")
        self.words: Callable[[Tensor], Tensor] = earlier.words if isinstance(earlier, ItemReader) else embedding.forward
        self.embedding, self.vectors, self.start = embedding, vectors, start

    def __call__(self, ids: Tensor) -> Tensor:
        """(…) token ids, or ids of items -> (…, D)."""
        words = self.words(ids.clamp(max=self.start - 1))
        items = self.vectors((ids - self.start).clamp(min=0).flatten()).view_as(words).to(words.dtype)
        scale = getattr(getattr(self.embedding, "original_module", self.embedding), "embed_scale", None)  # Gemma's
        if scale is not None:
            items = items * scale.to(items.dtype)
        return torch.where((ids >= self.start).unsqueeze(-1), items, words)


def read_items(model: nn.Module, sids: range, tokens_NL: np.ndarray, start: int) -> None:
    """Let a model read items as the means of their codes, in place; a later call changes the semantic IDs.

    Args:
        model: Causal LM or a PEFT model over one.
        sids: Token ids of all codes.
        tokens_NL: (N, L) int64 token ids of each item's SID.
        start: Id of item row 0.
    """
    base = causal_lm(model)
    tokens = torch.from_numpy(tokens_NL).to(base.device)
    read_vectors(base, MeansOfCodes(base.get_input_embeddings(), sids, tokens), start)


def read_vectors(base: PreTrainedModel, vectors: Callable[[Tensor], Tensor], start: int) -> None:
    """Let a causal LM read ids from `start` on as vectors of items, in place; see `ItemReader`."""
    embedding = base.get_input_embeddings()
    vars(embedding)["forward"] = ItemReader(embedding, vectors, start)
