"""Projection: the state before an answer, through two layers, against given vectors of the items, by cosine.

    p(item) = softmax over items of cos(outer ReLU(inner state), vector of the item) / temperature

The vectors are those that the item tokenizer quantised, such as LightGCN's. They do not train, and lie in the
checkpoint with the two layers. So items that share a semantic ID are told apart, and an item that is appended is ranked
by its vector, next to the items whose vectors are near. An item without a vector comes last: its cosine counts as -1.

The loss is the cross-entropy over all items, or with `cosine` that of the paper: for each target one other item is
drawn, and

    loss = (1 - cos(target) + max(0, cos(other))) / 2

Source: TokenRec (arXiv:2406.10450), with the inner size of its released code. Departures: cross-entropy by default; the
state is that of the last history token, where the code flattens 20 states of a T5 decoder; the other item is never the
target itself; dropout is that of `llmrec sft`.

Shapes: Q states, H hidden, N items, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers import PreTrainedModel

from llmrec.model.heads.head import cosines, softmax_loss
from llmrec.model.heads.own_files import HEAD

INNER = 256  # size of the layer between, as released
HeadLoss = Literal["softmax", "cosine"]


class ItemProjection(nn.Module):
    """Two layers into the space of the items' vectors, and these vectors.

    Args:
        hidden: H.
        vectors_ND: (N, D) vectors of the items, zero for an item that has none.
    """

    vectors: Tensor

    def __init__(self, hidden: int, vectors_ND: Tensor):
        super().__init__()
        self.inner = nn.Linear(hidden, INNER)
        self.outer = nn.Linear(INNER, vectors_ND.shape[1])
        self.register_buffer("vectors", vectors_ND)

    def forward(self, states_QH: Tensor) -> Tensor:
        """(Q, H) -> (Q, D), the vector that each state asks for."""
        return self.outer(relu(self.inner(states_QH.to(self.inner.weight.dtype))))


@dataclass(frozen=True)
class ProjectedState:
    """Head over given vectors; `llmrec.model.heads.head` explains its methods.

    Args:
        vectors_ND: (N, D) vectors of the items, on the device of the model.
        temperature: Divisor of the cosines.
        loss_by: Loss to train by.
    """

    vectors_ND: Tensor
    temperature: float
    loss_by: HeadLoss = "softmax"

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return len(self.vectors_ND)

    def log_probs(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        """Score all items; (Q, H) -> (Q, N) float32 log-probabilities."""
        return (self.cosines(model, states_QH) / self.temperature).log_softmax(dim=-1)

    def loss(self, model: PreTrainedModel, states_QH: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum the losses of the targets, by cross-entropy or cosine."""
        cosines_QN = self.cosines(model, states_QH)
        if self.loss_by == "softmax":
            return softmax_loss(cosines_QN / self.temperature, targets, label_smoothing)
        others = torch.randint(self.num_items - 1, targets.shape, device=targets.device)
        return cosine_loss(cosines_QN, targets, others + (others >= targets))

    def cosines(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        """(Q, N) float32 cosines of projected states and items; -1 for an item without a vector."""
        found_QN = cosines(getattr(model, HEAD)(states_QH), self.vectors_ND)
        return found_QN.masked_fill(~self.vectors_ND.any(dim=1), -1.0)


def cosine_loss(cosines_QN: Tensor, targets_Q: Tensor, others_Q: Tensor) -> Tensor:
    """Sum the cosine losses of targets.

    Args:
        cosines_QN: (Q, N) cosines with all items.
        targets_Q: (Q,) int64 item rows, negative where nothing is asked for.
        others_Q: (Q,) int64 item rows that shall be far from the state.

    Returns:
        Scalar: over the targets, half the distance from the target and half the nearness to the other item.

    Source: TokenRec's released code, which has PyTorch's CosineEmbeddingLoss without margin over both.
    """
    asked_Q, rows_Q = targets_Q >= 0, torch.stack([targets_Q.clamp(min=0), others_Q], dim=1)
    own_Q, other_Q = cosines_QN.gather(1, rows_Q).unbind(1)
    return ((1 - own_Q + relu(other_Q)) / 2 * asked_Q).sum()
