"""GRU4Rec: a recurrent network over the items of a history (Hidasi et al., arXiv:1511.06939).

Departures: the loss is the trainer's softmax over all items; histories are read whole, not as parallel sessions; the
output matrix is the input's ("constrained embedding" in the authors' code). SASRec has the same loss and output here,
so the two differ only in the network.

Shapes: B histories, T items of the longest, D hidden.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.network import Network


class GRU4Rec(Network):
    """A GRU with dropout before and after it.

    Args:
        num_items: Number of items of the catalogue.
        max_history: Unused; a recurrent network has no positions to learn.
        hidden: Size of states and item vectors.
        layers: Number of layers of the GRU.
        dropout: Dropout on its input, between its layers and on its output.
    """

    name = "gru4rec"

    def __init__(
        self,
        num_items: int,
        max_history: int,
        hidden: int = 128,  # the paper has 100
        layers: int = 1,  # as in the paper: more did not help
        dropout: float = 0.3,  # the only value tried, on MovieTweetings
    ):
        super().__init__(num_items, hidden)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """(B, T, D) state at every place."""
        states, _ = self.gru(self.dropout(functional.embedding(history, vectors)))  # (B, T, D)
        return self.dropout(states)
