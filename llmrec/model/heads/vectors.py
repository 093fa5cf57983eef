"""Vectors: the state before an answer against the vectors that items are read as, by cosine.

    p(item) = softmax over items of cos(state, mean of the item's code rows) / temperature

Items that share a semantic ID have one vector, and so one score. The head has no weights of its own.

Source: VQ-Rec (arXiv:2210.12316, temperature .07). Departures: the model is a causal LM with the code rows in its own
embedding, not SASRec; it trains on one catalogue, without the pretraining over several domains, its mixed negatives and
its learned permutation of codes.

Shapes: Q states, H hidden, N items, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from llmrec.model.heads.head import cosines, softmax_loss
from llmrec.model.item_vectors import mean_rows


@dataclass(frozen=True)
class ItemVectors:
    """Head over the items' vectors; `llmrec.model.heads.head` explains its methods.

    Args:
        sids: Token ids of all codes.
        tokens_NL: (N, L) int64 token ids of each item's SID, on the device of the model.
        temperature: Divisor of the cosines.
    """

    sids: range
    tokens_NL: Tensor
    temperature: float

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return len(self.tokens_NL)

    def log_probs(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        """Score all items; (Q, H) -> (Q, N) float32 log-probabilities."""
        return self._logits(model, states_QH).log_softmax(dim=-1)

    def loss(self, model: PreTrainedModel, states_QH: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum the cross-entropies of the targets."""
        return softmax_loss(self._logits(model, states_QH), targets, label_smoothing)

    def _logits(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        vectors = mean_rows(model.get_input_embeddings(), self.sids, self.tokens_NL)
        return cosines(states_QH, vectors) / self.temperature
