"""Head: reads the state before an answer, and ranks all items in one forward pass, without beams.

    rows        a vector of each item's own, tied between input and scores (`item_rows.py`)
    codes       a softmax over the codes of each level, all levels at once (`codes.py`)
    vectors     the vector that an item is read as (`vectors.py`)
    projection  given vectors of the items, into whose space the state is projected (`projection.py`)

A head is one file: the scores of all items, and the loss of the items that are asked for. Training
(`llmrec.training.sft.item_loss`) and ranking (`llmrec.decoding.ranker`) know no more of it.

Shapes: Q states, H hidden, N items.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel


class Head(Protocol):
    """Scores of all items, and their loss.

    Attributes:
        num_items: N.
    """

    @property
    def num_items(self) -> int: ...

    def log_probs(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        """Score all items.

        Args:
            model: Causal LM, without a wrapper.
            states_QH: (Q, H) last hidden states before an answer.

        Returns:
            (Q, N) float32; equal for items that share a semantic ID where a head knows items by these alone.
        """
        ...

    def loss(self, model: PreTrainedModel, states_QH: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum the losses of the items that come next.

        Args:
            model: Causal LM, without a wrapper.
            states_QH: (Q, H) last hidden states before an answer.
            targets: (Q,) int64 item rows, -100 where nothing is asked for, or (Q, N) float32 distributions over items.
            label_smoothing: Share of the target's probability that is spread over the alternatives.

        Returns:
            Scalar float32.
        """
        ...


def softmax_loss(scores_QN: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Sum the cross-entropies of a softmax over all items; `Head.loss` explains the arguments."""
    return cross_entropy(scores_QN, targets, reduction="sum", label_smoothing=label_smoothing)


def cosines(states: Tensor, rows_RH: Tensor) -> Tensor:
    """Cosines of states and rows, in float32 also under autocast: a temperature of .03 magnifies errors thirtyfold.

    Args:
        states: (…, H).
        rows_RH: (R, H).

    Returns:
        (…, R) float32.
    """
    with torch.autocast(states.device.type, enabled=False):
        normalized = torch.nn.functional.normalize(states.float(), dim=-1)
        return normalized @ torch.nn.functional.normalize(rows_RH.float(), dim=-1).T
