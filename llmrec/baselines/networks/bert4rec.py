"""BERT4Rec: a bidirectional transformer that predicts masked items (Sun et al., arXiv:1904.06690).

In training, some items of a window are replaced by a mask and predicted from both sides; every epoch masks others. One
window in 11 masks its last item only. That is the situation at inference, where a mask is appended to the history and
the item is predicted at its place.

The network learns from a part of each window, on a task other than the one it is used for, and needs many times the
epochs of SASRec. Petrov and Macdonald (arXiv:2207.07483) reach the results of the paper with its own code only after up
to 30 times the default number of steps. Its `training_options` are therefore longer than those of the other networks.

Departures: the linear layers have torch's initialisation; the learning rate is the trainer's, constant and without
warm-up; histories are padded on the right; windows overlap by half instead of nine tenths.

Shapes: B histories, T items of the longest, W windows, D hidden, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.examples import Examples, Windows, pad_right
from llmrec.baselines.networks.network import INITIAL_STD, Network
from llmrec.baselines.networks.training_options import TrainingOptions

LAST_ONLY = 1 / 11  # windows that mask only their last item: the authors' code writes ten others for each of these


class BERT4Rec(Network):
    """Blocks of bidirectional attention, then one layer before the tied output matrix.

    Args:
        num_items: Number of items of the catalogue.
        max_history: Largest number of items of a history; one more position is learned for the appended mask.
        hidden: Size of states and item vectors.
        layers: Number of blocks.
        heads: Attention heads of a block.
        dropout: Dropout on the input, the attention weights and the output of each layer.
        hidden_share: Share of a window's items that are masked; at least one item is.
    """

    name = "bert4rec"
    # An epoch predicts a fifth of the items that one of SASRec predicts. Petrov and Macdonald have a patience of 200.
    training_options = TrainingOptions(max_epochs=1000, patience=50)

    def __init__(
        self,
        num_items: int,
        max_history: int,
        hidden: int = 64,  # this and the next three as in the paper, "Implementation Details", and in its code
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        hidden_share: float = 0.2,  # Petrov and Macdonald's; the paper has .6 for Beauty, .2 for MovieLens
    ):
        super().__init__(num_items + 2, hidden)
        self.mask, self.padding, self.hidden_share = num_items, num_items + 1, hidden_share
        self.positions = nn.Parameter(torch.empty(max_history + 1, hidden))
        nn.init.normal_(self.positions, std=INITIAL_STD)
        self.embedded = nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout))
        block = nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, dropout, functional.gelu, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.LayerNorm(hidden))
        self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """(B, T, D) state at every place; places of `padding` are not attended to."""
        inputs = self.embedded(functional.embedding(history, vectors) + self.positions[: history.shape[1]])
        return self.head(self.blocks(inputs, src_key_padding_mask=history == self.padding))  # (B, T, D)

    def scores(self, states: Tensor, vectors: Tensor) -> Tensor:
        """(S, N) logits, with a bias per item as in the paper."""
        return super().scores(states, vectors[: self.mask]) + self.bias

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

    def inputs(self, histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Padded histories (B, T) with a mask appended, and their lengths (B,)."""
        return pad_right([np.append(history, self.mask) for history in histories], self.padding)
