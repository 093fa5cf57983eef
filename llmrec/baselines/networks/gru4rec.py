"""GRU4Rec: a recurrent network over the items of a history (Hidasi et al., arXiv:1511.06939).

Departures: the loss is the trainer's softmax over all items; histories are read whole, not as parallel sessions; the
output matrix is the input's ("constrained embedding" in the authors' code). SASRec has the same loss and output here,
so the two differ only in the network.

Shapes: B histories, T items of the longest, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.network import Network
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.configs.options import option


@dataclass(kw_only=True)
class GRU4RecOptions(TrainingOptions):
    """Options of GRU4Rec."""

    # the paper has 100
    hidden: int = option("Size of states and item vectors.", 128, least=1)
    # as in the paper: more did not help
    layers: int = option("Number of layers of the GRU.", 1, least=1)
    # the only value tried, on MovieTweetings
    dropout: float = option("Dropout on its input, between its layers and on its output.", 0.3, least=0, most=1)


class GRU4Rec(Network):
    """A GRU with dropout before and after it.

    Args:
        num_items: Number of items of the catalogue.
        max_history: Unused; a recurrent network has no positions to learn.
        options: Fields of GRU4RecOptions.
    """

    name = "gru4rec"
    options = GRU4RecOptions

    def __init__(self, num_items: int, max_history: int, **options: Any):  # GRU4RecOptions checks them
        chosen = GRU4RecOptions(**options)
        hidden, layers, dropout = chosen.hidden, chosen.layers, chosen.dropout
        super().__init__(num_items, hidden)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """(B, T, D) state at every place."""
        states, _ = self.gru(self.dropout(functional.embedding(history, vectors)))  # (B, T, D)
        return self.dropout(states)
