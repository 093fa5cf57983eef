"""The loss of next-item prediction, computed inside the model's forward at supervised positions only.

The loss is in `forward`, so that it passes through whatever wraps the model (PEFT, DDP, FSDP). `level` takes the
softmax over the codes of the target's level, `vocabulary` over the whole vocabulary. Words, which alignment tasks
answer in, are always scored over the vocabulary.

Shapes: B rows, T tokens, P positions, K codes of a level.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llmrec.model.backbone import causal_lm, forward_replaced, logits, run_backbone
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.distil.batch import NO_QUERY, BatchQueries, TaughtBatch, TaughtCodes
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.item_loss import ItemLoss, ItemTargets
from llmrec.training.sft.mutual import MutualTerm
from llmrec.training.sft.packing import separate

IGNORED = -100
NormalizeOver = Literal["level", "vocabulary"]
ExtraLoss = Callable[[Tensor, dict[str, Tensor]], Tensor]
Teach = Callable[[Tensor, Tensor, BatchQueries], TaughtBatch]


def sid_cross_entropy(
    model: PreTrainedModel,
    hidden_PH: Tensor,
    labels_P: Tensor,
    vocabulary: SidVocabulary,
    normalize_over: NormalizeOver,
    label_smoothing: float = 0.0,
    most: tuple[int, int] | None = None,
    taught: TaughtCodes | None = None,
    words: slice = slice(None),
) -> Tensor:
    """Sum of the cross-entropies of supervised tokens.

    Args:
        model: Causal LM whose output rows score the tokens.
        hidden_PH: (P, hidden) states that predict them.
        labels_P: (P,) token ids, IGNORED where nothing is supervised.
        vocabulary: SID tokens of the levels.
        normalize_over: Tokens that the softmax of a SID token runs over.
        label_smoothing: Share of the target's probability that is spread over these tokens.
        most: Upper bounds of the number of positions of one level, and of words. With them the host does not wait for
            the device.
        taught: Distributions of a teacher over the codes of the labels.
        words: Tokens that the softmax of a word runs over; the labels among them have the same ids.

    Returns:
        Scalar float32.
    """

    def loss_over(rows: slice, chosen_P: Tensor, limit: int | None, level: int | None = None) -> Tensor:
        places = _places(chosen_P, limit)
        scores = logits(model, hidden_PH.index_select(0, places), rows)
        first = rows.start or 0
        targets = torch.where(chosen_P, labels_P - first, IGNORED)[places]
        if taught is None or level is None:
            return cross_entropy(scores, targets, reduction="sum", label_smoothing=label_smoothing)
        taught_PK, weights_P = taught.at(level, places, chosen_P[places])
        own = weights_P * cross_entropy(scores, targets, reduction="none", label_smoothing=label_smoothing)
        codes = vocabulary.rows(level, scores.device)
        if isinstance(codes, slice):
            codes = slice(codes.start - first, codes.stop - first)
        log_probs_PK = scores.log_softmax(dim=-1)[:, codes]
        return own.sum() - (taught_PK * log_probs_PK).sum()

    supervised = labels_P != IGNORED
    over_all = normalize_over == "vocabulary"
    if over_all and taught is None:
        return loss_over(slice(None), supervised, None if most is None else len(labels_P))
    most_of_level, most_words = (None, None) if most is None else most
    by_level = _by_level(labels_P, vocabulary, taught)
    losses = [
        loss_over(slice(None) if over_all else vocabulary.block(level), chosen_P, most_of_level, level)
        for level, chosen_P in enumerate(by_level)
    ]
    if most_words != 0:
        losses.append(loss_over(words, supervised & ~torch.stack(by_level).any(dim=0), most_words))
    return torch.stack(losses).sum()


def _by_level(labels_P: Tensor, vocabulary: SidVocabulary, taught: TaughtCodes | None) -> list[Tensor]:
    """(P,) bool for each level, labels that are its codes; by their place in an answer where tokens do not tell it."""
    if taught is not None and not vocabulary.tells_level:
        levels_P = taught.levels_of_tokens()
        return [(levels_P == level) & (labels_P != IGNORED) for level in range(vocabulary.num_levels)]
    blocks = [vocabulary.block(level) for level in range(vocabulary.num_levels if vocabulary.tells_level else 1)]
    return [(labels_P >= block.start) & (labels_P < block.stop) for block in blocks]


def _places(chosen_P: Tensor, limit: int | None) -> Tensor:
    """Indices of the chosen positions; with a limit that many, all chosen ones first, so the host need not wait."""
    if limit is None:
        return chosen_P.nonzero().squeeze(1)
    return chosen_P.byte().argsort(descending=True, stable=True)[:limit]


@dataclass(frozen=True)
class NextItemLoss:
    """Mean loss of a batch, as `sid_loss_in_forward` puts it into the model; it explains the fields.

    Args:
        base: Causal LM, without a wrapper.
    """

    base: PreTrainedModel
    vocabulary: SidVocabulary
    normalize_over: NormalizeOver
    label_smoothing: float
    extra_loss: ExtraLoss | None
    item_loss: ItemLoss | None
    mutual: MutualTerm | None

    def mean(
        self,
        labels: Tensor,
        count: Tensor | int,
        input_ids: Tensor | None,
        most: tuple[int, int] | None = None,
        pools: dict[str, Tensor] | None = None,
        taught: TaughtCodes | None = None,
        items: ItemTargets | None = None,
        **inputs: object,
    ) -> Tensor:
        """Loss of (B, T) labels, divided by `count`."""
        inputs |= {"input_ids": input_ids, "use_cache": False}
        states = run_backbone(self.base, **inputs).last_hidden_state
        targets = pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        if taught is not None:
            taught = taught._replace(query_of=pad(taught.query_of[:, 1:], (0, 1), value=NO_QUERY))
        total = states.new_zeros(())
        if self.vocabulary.head is None:
            total = sid_cross_entropy(
                self.base,
                states.flatten(0, 1),
                targets,
                self.vocabulary,
                self.normalize_over,
                self.label_smoothing,
                most,
                taught,
                slice(None) if self.mutual is None else self.mutual.words,
            )
        if items is not None and self.item_loss is not None:
            total = total + self.item_loss.sum(self.base, states.flatten(0, 1), items)
        if self.mutual is not None and input_ids is not None:
            total = total + self.mutual.sum(self.base, input_ids)
        if pools is None or self.extra_loss is None:
            return total / count
        return total / count + self.extra_loss(states, pools)

    def packed(self, captured: CapturedLoss, most_words: int, *batch: Tensor) -> Tensor:
        """Loss of (R, T) packed rows, for which the host never waits for the device.

        Args:
            captured: Bounds the number of tokens of a level.
            most_words: Upper bound of the number of labels that are words.
            batch: input_ids, position_ids, labels and count; then, with a teacher, the fields of TaughtCodes, and with
                an item loss those of ItemTargets.
        """
        input_ids, position_ids, labels, count, *codes = batch
        taught, items = None, None
        if self.item_loss is not None:
            *codes, places, targets = codes
            items = ItemTargets(places, targets)
        if codes:
            query_of, is_drawn, *levels = codes
            taught = TaughtCodes(query_of, is_drawn, levels)
        most, mask = (captured.most_of_level(labels), most_words), separate(position_ids)
        return self.mean(
            labels, count, input_ids, most, taught=taught, items=items,
            position_ids=position_ids, attention_mask=mask,
        )  # fmt: skip


@contextlib.contextmanager
def sid_loss_in_forward(
    model: nn.Module,
    vocabulary: SidVocabulary,
    normalize_over: NormalizeOver,
    label_smoothing: float = 0.0,
    captured: CapturedLoss | None = None,
    extra_loss: ExtraLoss | None = None,
    teach: Teach | None = None,
    item_loss: ItemLoss | None = None,
    mutual: MutualTerm | None = None,
) -> Iterator[None]:
    """Inside the context, `model(input_ids, attention_mask, labels=…)` returns the loss and computes no other logits.

    The model also takes `num_items_in_batch`, which the sum of the losses is divided by, and `most_words` of the
    collator. Calls without `labels` are left as they are.

    Args:
        model: Causal LM or a PEFT model over one.
        vocabulary: SID tokens of the levels.
        normalize_over: Tokens that the softmax of a SID token runs over.
        label_smoothing: See `sid_cross_entropy`.
        captured: Runs packed batches of training as CUDA graphs; see `llmrec.training.sft.captured_step`.
        extra_loss: Function of the last hidden states (B, T, hidden) and the `pools` of a batch; its value is added to
            the loss of batches that have `pools`.
        teach: `Distillation.teach`, which answers the `queries` of a batch.
        item_loss: Loss of item rows, for batches that have `queries`.
        mutual: Term that holds the two rows of each item together, with content passes.
    """
    base = causal_lm(model)
    original = base.forward
    loss = NextItemLoss(base, vocabulary, normalize_over, label_smoothing, extra_loss, item_loss, mutual)

    @functools.wraps(original)
    def forward(
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        most_words: int = 0,
        queries: dict[str, Tensor] | None = None,
        **inputs: Any,  # whatever the model's own forward takes
    ) -> object:
        if labels is None:
            return original(input_ids=input_ids, **inputs)
        count = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        taught, items, probabilities = None, None, None
        if teach is not None and queries is not None and input_ids is not None:
            input_ids, labels, taught, _, probabilities = teach(input_ids, labels, BatchQueries(**queries))
        if item_loss is not None and queries is not None:
            items = item_loss.targets(BatchQueries(**queries), probabilities)
        if captured is not None and base.training and torch.is_grad_enabled():
            rows = [input_ids, inputs["position_ids"], labels]
            function = functools.partial(loss.packed, captured)
            return CausalLMOutput(loss=captured(function, rows, torch.as_tensor(count), most_words, taught, items))
        return CausalLMOutput(loss=loss.mean(labels, count, input_ids, taught=taught, items=items, **inputs))

    with forward_replaced(base, forward), captured.stream() if captured is not None else contextlib.nullcontext():
        yield
