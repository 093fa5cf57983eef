"""Network of FAMAE (arXiv:2602.02338): reads the fields of the items of a window, predicts the values of hidden fields.

The state of the last position predicts every field by its cosines with the vectors of the values, which are the input
vectors too. famae.py lists the departures.

Shapes: N items, J fields, V values of a field, W values of one item in it, B windows, T positions, U items of a batch,
S sampled values, D dimension of a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.network import INITIAL_STD
from llmrec.runtime.device import from_host

# Values of the paper, except where a comment says otherwise.
WINDOW = 32  # positions, with that of the last item
LAYERS, HEADS, INNER, DROPOUT = 2, 4, 512, 0.1
NEGATIVES = 128
MOST_CLASSES = 1000  # values of a field above which negatives are sampled; the paper gives no number
PADDING = -1  # instead of an item row


class Field(NamedTuple):
    """Values of one field.

    Attributes:
        name: Name of the column.
        values: (N, W) int64: the values of each item in [0, num_values), padded with `num_values + 1`. An item without
            a value has `num_values` as its first.
        num_values: V.
    """

    name: str
    values: np.ndarray
    num_values: int


def last_state(block: nn.TransformerEncoderLayer, inputs_BTD: Tensor, padding_BT: Tensor) -> Tensor:
    """(B, D) output of a transformer block at the last position; the other outputs are not needed."""
    last_B1D = inputs_BTD[:, -1:]
    read_B1D, _ = block.self_attn(last_B1D, inputs_BTD, inputs_BTD, key_padding_mask=padding_BT, need_weights=False)
    last_B1D = block.norm1(last_B1D + block.dropout1(read_B1D))
    inner_B1D = block.linear2(block.dropout(block.activation(block.linear1(last_B1D))))
    return block.norm2(last_B1D + block.dropout2(inner_B1D))[:, 0]


class FAMAE(nn.Module):
    """A transformer that reads windows of items with fields, and scores values of fields at the last position.

    Args:
        fields: Fields of N items; the first is the item itself.
        dim: D, a multiple of the four heads.
    """

    def __init__(self, fields: Sequence[Field], dim: int):
        super().__init__()
        self.sizes = [field.num_values for field in fields]
        self.bags = [nn.EmbeddingBag(size + 2, dim, mode="mean", padding_idx=size + 1) for size in self.sizes]
        self.embeddings = nn.ModuleList(self.bags)
        self.masks = nn.Parameter(torch.empty(len(fields), dim))
        self.positions = nn.Parameter(torch.empty(WINDOW, dim))
        for weight in (self.masks, self.positions, *(bag.weight for bag in self.bags)):
            nn.init.normal_(weight, std=INITIAL_STD)
        self.embedded = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(DROPOUT))
        block = nn.TransformerEncoderLayer(dim, HEADS, INNER, DROPOUT, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False).layers
        for i, field in enumerate(fields):
            self.register_buffer(f"values_{i}", torch.from_numpy(field.values), persistent=False)

    def values(self, field: int) -> Tensor:
        """Values of a field, (N, W); see `Field`."""
        return getattr(self, f"values_{field}")

    def forward(self, items_BT: Tensor, hidden_BJ: Tensor) -> Tensor:
        """Compute the state at the last position.

        Args:
            items_BT: (B, T) int64 item rows, padded on the left with PADDING.
            hidden_BJ: (B, J) bool, fields of the last item that are hidden.

        Returns:
            (B, D) states.
        """
        rows_U, place_BT = items_BT.clamp(min=0).unique(return_inverse=True)
        parts_UJD = torch.stack([bag(self.values(i)[rows_U]) for i, bag in enumerate(self.bags)], dim=1)
        last_BJD = torch.where(hidden_BJ[..., None], self.masks, parts_UJD[place_BT[:, -1]])
        sums_BTD = torch.cat([parts_UJD.sum(1)[place_BT[:, :-1]], last_BJD.sum(1, keepdim=True)], dim=1)
        states_BTD, padding_BT = self.embedded(sums_BTD + self.positions[-items_BT.shape[1] :]), items_BT == PADDING
        for block in self.blocks[:-1]:
            states_BTD = block(states_BTD, src_key_padding_mask=padding_BT)
        return last_state(self.blocks[-1], states_BTD, padding_BT)

    def scores(self, states_BD: Tensor, field: int, values: Tensor | slice) -> Tensor:
        """(B, number of values) cosines of states with some values of a field, times sqrt(D)."""
        classes = functional.normalize(self.bags[field].weight[values], dim=-1)
        return functional.normalize(states_BD, dim=-1) @ classes.T * states_BD.shape[1] ** 0.5

    def field_loss(self, states_BD: Tensor, field: int, items_B: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Cross-entropy of the values of items in one field; the values of an item are equally likely.

        Args:
            states_BD: (B, D) states.
            field: Number of the field.
            items_B: (B,) item rows whose values are predicted.
            negatives: (S,) sampled values that stand for all others; an item's own values are left out of them.

        Returns:
            (B,) losses, 0 for an item without a value.
        """
        values_BW, size = self.values(field)[items_B], self.sizes[field]
        real_BW, values_BW = values_BW < size, values_BW.clamp(max=size - 1)
        if negatives is None:
            loss_BW = -self.scores(states_BD, field, slice(size)).log_softmax(1).gather(1, values_BW)
        else:
            others_BS = self.scores(states_BD, field, negatives)
            own_BS = ((negatives == values_BW[..., None]) & real_BW[..., None]).any(1)
            rest_B1 = others_BS.masked_fill(own_BS, -torch.inf).logsumexp(1, keepdim=True)
            classes_BWD = functional.normalize(self.bags[field].weight[values_BW], dim=-1)
            unit_B1D = functional.normalize(states_BD, dim=-1)[:, None]
            score_BW = (classes_BWD * unit_B1D).sum(-1) * states_BD.shape[1] ** 0.5
            loss_BW = torch.logaddexp(score_BW, rest_B1) - score_BW
        return (loss_BW * real_BW).sum(1) / real_BW.sum(1).clamp(min=1)

    def loss(self, items_BT: np.ndarray, hidden_BJ: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Mean over windows of the summed loss of the hidden fields of the last item."""
        device = self.masks.device
        items, total = from_host(items_BT, device), torch.zeros((), device=device)
        states_BD = self(items, from_host(hidden_BJ, device))
        for i, size in enumerate(self.sizes):
            rows = from_host(np.flatnonzero(hidden_BJ[:, i]), device)
            sampled = from_host(rng.integers(0, size, NEGATIVES), device) if size > MOST_CLASSES else None
            total = total + self.field_loss(states_BD[rows], i, items[rows, -1], sampled).sum()
        return total / len(items)
