"""The loss of item rows: a softmax over all items, at the place where the first code of a target is predicted.

The state there is the one that ranks items (`llmrec.model.item_scores`), so the rows of the item tokens learn to be
read and to be found at once. An answer learns the data's next item, label smoothing included, and with a teacher

    (1 - w) (data's next item) + w (teacher's distribution over items).

Answers that the teacher draws are left out: their prompts are beginnings of the same windows, where the teacher's
distribution is learned already.

The loss of an item counts `item_weight` times as much as a SID, whose codes the loss counts one by one.

Shapes: Q answers of the data, N items, T tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from llmrec.configs import SftConfig
from llmrec.model.item_scores import item_logits
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.distil.batch import BatchQueries


class ItemTargets(NamedTuple):
    """Items to be predicted in a batch.

    Attributes:
        places: (Q,) int64 places of the states that predict them, in the flattened batch.
        targets: (Q,) int64 item rows, or with a teacher (Q, N) float32 distributions.
    """

    places: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ItemLoss:
    """Loss of the items of a batch.

    Args:
        items: Tokens of the items.
        weight: Weight of an item's loss against that of one code.
        label_smoothing: Share of the target's probability that is spread over all items.
        teacher_weight: Weight w of the teacher's distribution.
    """

    items: ItemTokens
    weight: float
    label_smoothing: float
    teacher_weight: float

    @classmethod
    def of(cls, config: SftConfig, vocabulary: SidVocabulary) -> ItemLoss | None:
        """Make the loss of a run; None if items have no rows or no weight."""
        if vocabulary.items is None or config.item_weight == 0:
            return None
        weight = config.item_weight * vocabulary.num_levels
        return cls(vocabulary.items, weight, config.label_smoothing, config.teacher_weight)

    def targets(self, queries: BatchQueries, probabilities_QN: Tensor | None) -> ItemTargets:
        """Collect what the batch asks for.

        Args:
            queries: Queries of the batch.
            probabilities_QN: The teacher's answers to them; None without a teacher.
        """
        count = len(queries.answers) - len(queries.drawn_places)
        places, answers = queries.places[:count] - 1, queries.answers[:count]
        if probabilities_QN is None:
            return ItemTargets(places, answers)
        own_share = 1 - self.teacher_weight
        mixed_QN = (
            self.teacher_weight * probabilities_QN[:count] + own_share * self.label_smoothing / self.items.num_items
        )
        own_Q1 = torch.full_like(mixed_QN[:, :1], own_share * (1 - self.label_smoothing))
        return ItemTargets(places, mixed_QN.scatter_add(1, answers.unsqueeze(1), own_Q1))

    def sum(self, model: PreTrainedModel, states_TH: Tensor, items: ItemTargets) -> Tensor:
        """Sum the weighted cross-entropies of the targets.

        Args:
            model: Causal LM, without a wrapper.
            states_TH: (T, hidden) last hidden states of the flattened batch.
            items: What to predict.

        Returns:
            Scalar float32.
        """
        scores_QN = item_logits(model, states_TH[items.places], self.items)
        smoothing = 0.0 if items.targets.is_floating_point() else self.label_smoothing  # distributions contain theirs
        return self.weight * cross_entropy(scores_QN, items.targets, reduction="sum", label_smoothing=smoothing)
