"""Tree distillation: the LLM learns the codes of the data's next item, and of a teacher's distribution over items.

At every target the teacher says how likely each item is to come next. Summed along the trie, this is a distribution
over the codes of each level, given the target's codes before it (`llmrec.training.distil.code_targets`). The loss of a
target's code is (1 - w) cross-entropy with its own code + w cross-entropy with the teacher's distribution.

Drawn answers extend training to prefixes that the data never shows: at a random place of a window the teacher draws an
answer, on whose codes the LLM learns the teacher's distribution alone. All drawn answers of a batch together weigh as
much as the teacher's distribution at all of its targets.

The teacher and the sums run before the training step, without gradients; the step only reads their result, so that it
can be captured as a CUDA graph.

Shapes: Q queries, N items, R rows of the batch, T tokens, L levels, K codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec.baselines.queries import Queries, Teacher
from llmrec.baselines.taught import load_teacher
from llmrec.configs import SftConfig
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.runtime.console import say
from llmrec.runtime.device import from_host
from llmrec.sid.table import EMPTY
from llmrec.training.distil.batch import BatchQueries, TaughtBatch, TaughtCodes
from llmrec.training.distil.code_targets import AliasTargets
from llmrec.training.sft.losses import IGNORED
from llmrec.training.start import RunInputs


@dataclass(frozen=True)
class Distillation:
    """A teacher, and how the LLM learns from it.

    Args:
        teacher: Ranker that answers queries, on the device of training.
        targets: Sums of its probabilities along the tries of all aliases, on the same device; None for a head, which
            learns the distribution over items itself (`llmrec.training.sft.item_loss`).
        tokens_ANL: (A, N, L) int64 token ids of each item in each alias, -1 beyond the end of its semantic ID, on the
            same device.
        weight: Weight w of the teacher, between 0 and 1.
        temperature: Temperature of the teacher's distribution.
        exclude_seen: Give no probability to items of the window before the answer.
        pad_token_id: Token id of padding.
    """

    teacher: Teacher
    targets: AliasTargets | None
    tokens_ANL: Tensor
    weight: float
    temperature: float
    exclude_seen: bool
    pad_token_id: int

    @classmethod
    def of(
        cls, config: SftConfig, start: RunInputs, encoder: HistoryEncoder, device: torch.device
    ) -> Distillation | None:
        """Load the teachers of a run; None if it has none, or they have no weight.

        Args:
            config: Options of the stage.
            start: Inputs of the run.
            encoder: Token ids of items.
            device: Device of training.

        Raises:
            ValueError: If a teacher cannot be loaded, or belongs to another catalogue.
        """
        if not config.teacher or config.teacher_weight == 0:
            return None
        teacher = load_teacher(config.teacher, start.catalog, device)
        exclude_seen = {"auto": teacher.exclude_seen, "exclude": True, "keep": False}[config.teacher_seen]
        say(f"sft: the teacher {'leaves out' if exclude_seen else 'may recommend'} items that a user had before.")
        vocabulary = start.sid_config.vocabulary
        return cls(
            teacher,
            None if vocabulary.head else AliasTargets(start.table, vocabulary.level_sizes, device),
            from_host(encoder.tokens_ANL, device),
            config.teacher_weight,
            config.teacher_temperature,
            exclude_seen,
            start.tokenizer.pad_token_id,
        )

    @torch.no_grad()
    def teach(self, input_ids: Tensor, labels: Tensor, queries: BatchQueries) -> TaughtBatch:
        """Ask the teacher about a batch, and put its drawn answers in.

        Args:
            input_ids: (R, T) int64, with room for the drawn answers.
            labels: (R, T) int64, IGNORED there.
            queries: Queries of the batch.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            probabilities_QN = self.teacher.probabilities(
                Queries(*queries[: len(Queries._fields)]), self.exclude_seen, self.temperature
            )
        answers, num_drawn = queries.answers, len(queries.drawn_places)
        num_targets = len(answers) - num_drawn
        weights_Q = torch.full_like(probabilities_QN[:, 0], self.weight)
        if num_drawn:
            chances = probabilities_QN[num_targets:]
            drawn = (chances / torch.empty_like(chances).exponential_()).argmax(dim=1)  # one draw of each row
            answers = torch.cat([answers[:num_targets], drawn])
            tokens_DL = self.tokens_ANL[queries.alias[num_targets:], drawn]
            input_ids = _put(input_ids, queries.drawn_places, tokens_DL, self.pad_token_id)
            labels = _put(labels, queries.drawn_places, tokens_DL, IGNORED)
            weights_Q[num_targets:] *= num_targets / num_drawn
        shares = [] if self.targets is None else self.targets(probabilities_QN, answers, queries.alias)
        levels = [level * weights_Q.unsqueeze(1) for level in shares]
        is_drawn_Q = torch.arange(len(answers), device=answers.device) >= num_targets
        codes = TaughtCodes(queries.query_of, is_drawn_Q, levels)
        return TaughtBatch(input_ids, labels, codes, answers, probabilities_QN)


def _put(batch_RT: Tensor, places_DL: Tensor, tokens_DL: Tensor, fill: int) -> Tensor:
    """Put tokens at places of the flattened batch, and `fill` beyond the end of a semantic ID."""
    values = torch.where(tokens_DL == EMPTY, fill, tokens_DL)
    return batch_RT.flatten().scatter(0, places_DL.flatten(), values.flatten()).view_as(batch_RT)
