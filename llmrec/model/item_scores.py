"""Scores of items by their own rows: the state before an answer times the embedding of every item token.

The rows are tied between input and scores whether or not the model ties its embedding to its output matrix, whose rows
of item tokens are not used. No scale and no soft cap is applied. So plain transformers ranks in five lines
(docs/decoding.md), and a cap on the logits of words does not limit how sure the model can be of one item in thousands.

Shapes: N items.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.model.trained_rows import with_trained_rows
from llmrec.sid.item_tokens import ItemTokens


def item_logits(model: PreTrainedModel, hidden: Tensor, items: ItemTokens) -> Tensor:
    """Score every item.

    Args:
        model: Causal LM, without a wrapper.
        hidden: (…, hidden) states before the first code of an answer: of the last item token, or of the prefix's end.
        items: Tokens of the items.

    Returns:
        (…, N) float32 logits; their softmax is the probability of each item.
    """
    rows = with_trained_rows(model.get_input_embeddings(), items.block)
    return nn.functional.linear(hidden.to(rows.dtype), rows).float()
