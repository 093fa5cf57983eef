"""Parallel code heads: all codes of an item are predicted at once, each by a head of its own.

    state_l   = state + SiLU(W_l state + b_l)         W and b start at 0, so that all heads start with the same state
    p_l(code) = softmax over the codes of level l of cos(state_l, row of the code's token) / temperature
    score     = mean over the levels of log p_l(code of the item)

The codes of an item count as independent, so their order means nothing and opq makes the semantic IDs. The ranking is
exact: one look-up per level and item. RPG itself walks over a graph of similar items, which is approximate; left out.

The loss of an item is its negative score. Of a distribution over items it is the mean of these losses, which is one
cross-entropy per level with the distribution of the codes.

Source: RPG (arXiv:2506.05781, section 3). Departures: the causal LM is any, with the code rows in its own embedding;
dropout is that of `llmrec sft`.

Shapes: Q states, H hidden, N items, L levels, K codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu
from transformers import PreTrainedModel

from llmrec.model.heads.head import cosines
from llmrec.model.heads.own_files import HEAD
from llmrec.model.trained_rows import with_trained_rows
from llmrec.sid.vocabulary import SidVocabulary

IGNORED = -100


class ResidualHeads(nn.Module):
    """One residual block for each level.

    Args:
        num_levels: L.
        hidden: H.
    """

    def __init__(self, num_levels: int, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_levels, hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(num_levels, 1, hidden))

    def forward(self, states_QH: Tensor) -> Tensor:
        """(Q, H) -> (L, Q, H), the state of each level."""
        states = states_QH.to(self.weight.dtype).expand(len(self.weight), -1, -1)
        return states + silu(torch.baddbmm(self.bias, states, self.weight.mT))


@dataclass(frozen=True)
class CodeHeads:
    """Head of one softmax per level; `llmrec.model.heads.head` explains its methods.

    Args:
        codes_LN: (L, N) int64 codes of each item, on the device of the model.
        vocabulary: Tokens of the codes.
        temperature: Divisor of the cosines.
    """

    codes_LN: Tensor
    vocabulary: SidVocabulary
    temperature: float

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return self.codes_LN.shape[1]

    def log_probs(self, model: PreTrainedModel, states_QH: Tensor) -> Tensor:
        """Score all items; (Q, H) -> (Q, N) float32 means of log-probabilities, one level after another."""
        scores_QN = torch.zeros(states_QH.shape[0], self.num_items, device=states_QH.device)
        for logits_QK, codes_N in zip(self.logits(model, states_QH), self.codes_LN, strict=True):
            scores_QN += logits_QK.log_softmax(dim=-1)[:, codes_N]
        return scores_QN / len(self.codes_LN)

    def loss(self, model: PreTrainedModel, states_QH: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum, over the targets, the mean of the levels' cross-entropies; smoothing spreads over a level's codes."""
        losses = []
        for logits_QK, codes_N in zip(self.logits(model, states_QH), self.codes_LN, strict=True):
            if targets.is_floating_point():
                of_codes = torch.zeros_like(logits_QK).index_add_(1, codes_N, targets)
            else:
                of_codes = torch.where(targets < 0, IGNORED, codes_N[targets.clamp(min=0)])
            losses.append(cross_entropy(logits_QK, of_codes, reduction="sum", label_smoothing=label_smoothing))
        return torch.stack(losses).mean()

    def logits(self, model: PreTrainedModel, states_QH: Tensor) -> list[Tensor]:
        """Compute the logits of the codes of each level; (Q, H) -> L tensors (Q, K) float32."""
        heads, embedding = getattr(model, HEAD), model.get_input_embeddings()
        rows = with_trained_rows(embedding, slice(self.vocabulary.token_range.start, self.vocabulary.token_range.stop))
        first = self.vocabulary.token_range.start
        blocks = [self.vocabulary.block(level) for level in range(len(self.codes_LN))]
        return [
            cosines(state_QH, rows[block.start - first : block.stop - first]) / self.temperature
            for state_QH, block in zip(heads(states_QH), blocks, strict=True)
        ]
