"""BERT4Rec: a bidirectional transformer that predicts masked items (Sun et al., arXiv:1904.06690).

In training, some items of a window are replaced by a mask and predicted from both sides; every epoch masks others. One
window in 11 masks its last item only. That is the situation at inference, where a mask is appended to the history and
the item is predicted at its place.

The network learns from a part of each window, on a task other than the one it is used for, and needs many times the
epochs of SASRec. Petrov and Macdonald (arXiv:2207.07483) reach the results of the paper with its own code only after up
to 30 times the default number of steps. It is therefore trained for longer than the other networks.

Departures: the linear layers have torch's initialisation; the learning rate is the trainer's, constant and without
warm-up; histories are padded on the right; windows overlap by half instead of nine tenths.

Shapes: B histories, T items of the longest, W windows, D hidden, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.examples import Examples, Windows
from llmrec.baselines.networks.network import INITIAL_STD, Network, head_problems
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.configs.options import option

LAST_ONLY = 1 / 11  # windows that mask only their last item: the authors' code writes ten others for each of these


@dataclass(kw_only=True)
class BERT4RecOptions(TrainingOptions):
    """Options of BERT4Rec."""

    # An epoch predicts a fifth of the items that one of SASRec predicts. Petrov and Macdonald have a patience of 200.
    max_epochs: int = option("Largest number of passes over the training sequences.", 1000, least=1)
    patience: int = option("Training stops after so many epochs without a new best one.", 50, least=1)
    # This and the next three as in the paper, "Implementation Details", and in its code.
    hidden: int = option("Size of states and item vectors; a multiple of `heads`.", 64, least=1)
    layers: int = option("Number of blocks.", 2, least=1)
    heads: int = option("Attention heads of a block.", 2, least=1)
    dropout: float = option(
        "Dropout on the input, the attention weights and the output of each layer.", 0.2, least=0, most=1
    )
    # Petrov and Macdonald's; the paper has .6 for Beauty, .2 for MovieLens
    hidden_share: float = option(
        "Share of a window's items that are masked; at least one item is.", 0.2, above=0, most=1
    )

    def problems(self) -> list[str]:
        return [*super().problems(), *head_problems(self.hidden, self.heads)]


class BERT4Rec(Network):
    """Blocks of bidirectional attention, then one layer before the tied output matrix.

    Args:
        num_items: Number of items of the catalogue.
        max_history: Largest number of items of a history; one more position is learned for the appended mask.
        options: Fields of BERT4RecOptions.
    """

    name = "bert4rec"
    options = BERT4RecOptions
    causal = False

    def __init__(self, num_items: int, max_history: int, **options: Any):  # BERT4RecOptions checks them
        chosen = BERT4RecOptions(**options)
        hidden, heads, dropout = chosen.hidden, chosen.heads, chosen.dropout
        super().__init__(num_items + 2, hidden)
        self.mask, self.padding, self.hidden_share = num_items, num_items + 1, chosen.hidden_share
        self.positions = nn.Parameter(torch.empty(max_history + 1, hidden))
        nn.init.normal_(self.positions, std=INITIAL_STD)
        self.embedded = nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout))
        block = nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, dropout, functional.gelu, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, chosen.layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.LayerNorm(hidden))
        self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """(B, T, D) state at every place; places of `padding` are not attended to."""
        inputs = self.embedded(functional.embedding(history, vectors) + self.positions[: history.shape[1]])
        return self.head(self.blocks(inputs, src_key_padding_mask=history == self.padding))  # (B, T, D)

    def scores(self, states: Tensor, vectors: Tensor) -> Tensor:
        """(S, N) logits, with a bias per item as in the paper."""
        return super().scores(states, vectors[: self.mask]) + self.bias

    def scores_of(self, states: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
        """(S, K) logits, with the bias of each item."""
        return super().scores_of(states, vectors, items) + self.bias[items]

    @property
    def num_items(self) -> int:
        """N; the mask and the padding are no items."""
        return self.mask

    def examples(self, pieces: Windows, rng: np.random.Generator) -> Examples:
        """Mask items of each of W windows; the masked items are the targets."""
        lengths = pieces.lengths[:, None]
        real = np.arange(pieces.items.shape[1]) < lengths  # (W, T)
        drawn = np.where(real, rng.random(real.shape), 2.0)
        count = np.maximum(1, np.rint(lengths * self.hidden_share))  # (W, 1)
        hidden = drawn.argsort(axis=1).argsort(axis=1) < count  # `count` random items of each window
        last = np.arange(real.shape[1]) == lengths - 1
        hidden = np.where(rng.random(lengths.shape) < LAST_ONLY, last, hidden)
        inputs = np.where(hidden, self.mask, np.where(real, pieces.items, self.padding))
        return Examples(inputs, pieces.lengths, hidden, pieces.items)

    def asked(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Histories (B, T + 1) with a mask appended, and its place (B,)."""
        place = torch.arange(items.shape[1] + 1, device=items.device)
        longer, lengths = functional.pad(items, (0, 1)), lengths[:, None]
        inputs = torch.where(place < lengths, longer, torch.where(place == lengths, self.mask, self.padding))
        return inputs, lengths[:, 0]
