"""The loss of a head, at the place where a target is predicted: of item rows beside that of SIDs, or of a head alone.

The state there is the one that ranks items (`llmrec.model.heads`), so what a model reads items by learns to be read and
to be found at once. An answer learns the data's next item, label smoothing included, and with a teacher

    (1 - w) (data's next item) + w (teacher's distribution over items).

Answers that the teacher draws are left out: their prompts are beginnings of the same windows, where the teacher's
distribution is learned already.

The loss of item rows counts `item_weight` times as much as a SID, whose codes the loss counts one by one.

Shapes: Q answers of the data, N items, T tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.configs import SftConfig
from llmrec.model.heads.head import Head
from llmrec.model.heads.item_rows import ItemRows
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
        head: Scores all items.
        weight: Weight of an item's loss against that of one code.
        label_smoothing: Share of the target's probability that is spread over all items.
        teacher_weight: Weight w of the teacher's distribution.
    """

    head: Head
    weight: float
    label_smoothing: float
    teacher_weight: float

    @classmethod
    def of(cls, config: SftConfig, vocabulary: SidVocabulary, head: Head | None = None) -> ItemLoss | None:
        """Make the loss of a run; None if there is no head, and items have no rows or no weight.

        Args:
            config: Options of the stage.
            vocabulary: Tokens of the items, if they have rows.
            head: Head that answers instead of SIDs.
        """
        labels_per_item = float(vocabulary.num_levels)
        if head is not None:
            weight = 1.0 if vocabulary.head is not None and vocabulary.head.by_codes else labels_per_item
        elif vocabulary.items is None or config.item_weight == 0:
            return None
        else:
            head, weight = ItemRows(vocabulary.items), config.item_weight * labels_per_item
        return cls(head, weight, config.label_smoothing, config.teacher_weight)

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
            self.teacher_weight * probabilities_QN[:count] + own_share * self.label_smoothing / self.head.num_items
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
        smoothing = 0.0 if items.targets.is_floating_point() else self.label_smoothing  # distributions contain theirs
        return self.weight * self.head.loss(model, states_TH[items.places], items.targets, smoothing)
