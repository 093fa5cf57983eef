"""Mutual term: the two rows of an item are pulled towards each other wherever one of them is read (CLLM4Rec).

    loss = (sum of cross-entropies + weight * sum over the items read of mean((row - other row)^2)) / number of labels

The other row is held fixed: content passes move content rows, histories move the rows of the items' tokens. In the
first epoch content rows are free: the others are as they were drawn, and would keep items of one text apart.

Source: CLLM4Rec (arXiv:2311.01343, section 4.4). Departures: the term is a mean over the dimensions, where the released
code sums them, so that a weight suits every hidden size (weight = lambda * hidden size); it is divided by the number of
labels, as the cross-entropies are, where the code sums over the whole batch.

Shapes: B rows, T tokens, N items, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from llmrec.configs import SftConfig
from llmrec.model.heads.content_rows import content_rows, content_start
from llmrec.model.trained_rows import with_trained_rows
from llmrec.sid.vocabulary import SidVocabulary


@dataclass
class MutualTerm:
    """Squared differences between the two rows of the items that a batch reads.

    Args:
        block: Token ids of the items, whose rows histories read.
        start: Id of the first content row.
        weight: Weight of the mean over the dimensions.
        holds_content: Draw content rows too; the trainer sets it.
    """

    block: slice
    start: int
    weight: float
    holds_content: bool = True

    @classmethod
    def of(cls, config: SftConfig, vocabulary: SidVocabulary) -> MutualTerm | None:
        """Make the term of a run; None without content passes."""
        if config.content_passes == 0:
            return None
        return cls(vocabulary.block(0), content_start(vocabulary), config.content_weight)

    @property
    def words(self) -> slice:
        """Token ids of words, over which texts are scored, so that a content pass moves no row of an item's token."""
        return slice(0, self.block.start)

    def sum(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Sum over the items of (B, T) ids, whichever of their rows is read; the other row gets no gradient."""
        own_ND, content_ND = with_trained_rows(model.get_input_embeddings(), self.block), content_rows(model)
        in_history = input_ids[(input_ids >= self.block.start) & (input_ids < self.block.stop)] - self.block.start
        distance = _distance(own_ND, content_ND, in_history)
        if self.holds_content:
            before_text = input_ids[input_ids >= self.start] - self.start
            distance = distance + _distance(content_ND, own_ND, before_text)
        return self.weight * distance


def _distance(moving_ND: Tensor, fixed_ND: Tensor, codes: Tensor) -> Tensor:
    difference = embedding(codes, moving_ND).float() - embedding(codes, fixed_ND.detach()).float()
    return difference.square().mean(dim=1).sum()
