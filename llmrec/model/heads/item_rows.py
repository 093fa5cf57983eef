"""Item rows: the state before an answer times the embedding of every item token.

The rows are tied between input and scores whether or not the model ties its embedding to its output matrix, whose rows
of item tokens are not used. No scale and no soft cap is applied. So plain transformers ranks in five lines
(docs/decoding.md), and a cap on the logits of words does not limit how sure the model can be of one item in thousands.

Shapes: Q states, H hidden, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.model.heads.head import softmax_loss
from llmrec.model.trained_rows import with_trained_rows
from llmrec.sid.item_tokens import ItemTokens


@dataclass(frozen=True)
class ItemRows:
    """Head whose logits are products with the rows of items; `llmrec.model.heads.head` explains its methods.

    Args:
        items: Tokens of the items.
    """

    items: ItemTokens

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return self.items.num_items

    def log_probs(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        """Score all items; (Q, H) -> (Q, N) float32 log-probabilities."""
        return self._logits(model, states_QH).log_softmax(dim=-1)

    def loss(self, model: PreTrainedModel, states_QH: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum the cross-entropies of the targets."""
        return softmax_loss(self._logits(model, states_QH), targets, label_smoothing)

    def _logits(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        rows = with_trained_rows(model.get_input_embeddings(), self.items.block)
        return nn.functional.linear(states_QH.to(rows.dtype), rows).float()
