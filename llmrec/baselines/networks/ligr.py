"""LiGR block: attention and a gated feed-forward layer, each behind a layer norm and before a gate.

Sources: LiGR (arXiv:2502.03417) as eSASRec (arXiv:2508.06450) uses it in the place of SASRec's block:

    x = x + sigmoid(W1 x) * dropout(attention(norm(x)))
    x = x + sigmoid(W2 x) * dropout(swiglu(norm(x)))

The gates read what the sum so far holds, so a block can leave a part of a state as it is.

Shapes: B histories, T items of the longest, D hidden.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SwiGLU(nn.Module):
    """Feed-forward layer whose inner state, four times as wide, is multiplied by a gate (Shazeer, arXiv:2002.05202).

    Args:
        hidden: D.
        dropout: Dropout on the inner state.
    """

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.up, self.down = nn.Linear(hidden, 8 * hidden), nn.Linear(4 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, D)."""
        gate, inner = self.up(states).chunk(2, dim=-1)
        return self.down(self.dropout(functional.silu(gate) * inner))


class LiGRBlock(nn.Module):
    """One block; it is called as `torch.nn.TransformerEncoderLayer` is.

    Args:
        hidden: D.
        heads: Attention heads.
        dropout: Dropout on the attention weights and on the output of each layer.
    """

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden, heads, dropout, batch_first=True)
        self.feed = SwiGLU(hidden, dropout)
        self.attention_norm, self.feed_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention_gate, self.feed_gate = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, is_causal: bool) -> Tensor:
        """(B, T, D) states after the block.

        Args:
            states: (B, T, D).
            mask: (T, T) added to the attention logits.
            is_causal: True says that the mask hides all that is later, which has faster kernels.
        """
        normed = self.attention_norm(states)
        attended, _ = self.attention(normed, normed, normed, need_weights=False, attn_mask=mask, is_causal=is_causal)
        states = states + self.attention_gate(states).sigmoid() * self.dropout(attended)
        fed = self.feed(self.feed_norm(states))
        return states + self.feed_gate(states).sigmoid() * self.dropout(fed)
