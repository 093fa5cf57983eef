"""Content rows: a second row of every item, from which the LLM writes the item's text (CLLM4Rec).

In a history an item is read by the row of its token, which learns from what users chose; before its text it is read by
its content row, which learns from the text. `llmrec.training.sft.content` holds the two together. To be read, a content
row has an id behind all tokens, which no tokenizer knows. Only training reads it: the LLM that ranks has one row for
each item. The rows lie beside the weights, so that a later `llmrec sft` goes on with them.

Source: CLLM4Rec (arXiv:2311.01343, section 4): collaborative and content token embeddings.

Shapes: N items, D hidden.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llmrec.model.heads.own_files import CONTENT_ROWS, FILES, fill, read_tensors
from llmrec.model.item_vectors import read_vectors
from llmrec.model.trained_rows import matrix_of, with_trained_rows
from llmrec.sid.vocabulary import SidVocabulary


def add_content_rows(model: PreTrainedModel, vocabulary: SidVocabulary, source: str | Path) -> None:
    """Give a causal LM content rows: those of its checkpoint, or copies of the rows of the items' tokens.

    Args:
        model: Causal LM, changed in place.
        vocabulary: Tokens of the items, one each.
        source: Directory of the checkpoint.

    Raises:
        ValueError: If the file of the rows cannot be read, or belongs to other weights.
    """
    rows = with_trained_rows(model.get_input_embeddings(), vocabulary.block(0)).detach().clone()
    content = nn.Embedding.from_pretrained(rows, freeze=False)
    path = Path(source) / FILES[CONTENT_ROWS]
    if path.is_file():
        fill(content, read_tensors(path), path)
    model.add_module(CONTENT_ROWS, content)


def content_rows(model: PreTrainedModel) -> Tensor:
    """(N, D) content rows of a causal LM, as they train."""
    return matrix_of(getattr(model, CONTENT_ROWS))


def content_start(vocabulary: SidVocabulary) -> int:
    """Id of the content row of code 0; that of code c is as much larger."""
    return vocabulary.added_range.stop


def read_content(model: PreTrainedModel, vocabulary: SidVocabulary) -> None:
    """Let a causal LM read the ids of content rows, in place."""

    def vectors(codes_n: Tensor) -> Tensor:
        return functional.embedding(codes_n, content_rows(model))

    read_vectors(model, vectors, content_start(vocabulary))
