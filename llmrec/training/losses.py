"""The loss of next-item prediction, computed inside the model's forward at supervised positions only.

The loss lives in `forward` so that it runs through whatever wraps the model (PEFT, DDP, FSDP), as TRL's own fused head
does. `level` takes the softmax over the codes of the target's level, `full` over the whole vocabulary.

Shapes: B rows, T tokens, P supervised positions, K codes of a level.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llmrec.backbone import causal_lm, finish_logits, output_rows, run_backbone
from llmrec.vocab import SidVocabulary

IGNORED = -100
SidLoss = Literal["level", "full"]


def sid_cross_entropy(
    model: PreTrainedModel,
    hidden_PH: Tensor,
    labels_P: Tensor,
    vocabulary: SidVocabulary,
    sid_loss: SidLoss,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Summed cross-entropy of supervised SID tokens.

    Args:
        model: Causal LM whose output rows score the tokens.
        hidden_PH: (P, hidden) states that predict them.
        labels_P: (P,) token ids.
        vocabulary: Blocks of the levels.
        sid_loss: What the softmax runs over.
        label_smoothing: Share of the target spread over what the softmax runs over.

    Returns:
        Scalar float32.
    """
    weight, bias = output_rows(model)
    hidden_PH = hidden_PH.to(weight.dtype)

    def loss_over(rows: slice, chosen: Tensor) -> Tensor:
        scores = linear(hidden_PH[chosen], weight[rows], None if bias is None else bias[rows])
        targets = labels_P[chosen] - (rows.start or 0)
        return cross_entropy(finish_logits(model, scores), targets, reduction="sum", label_smoothing=label_smoothing)

    if sid_loss == "full":
        return loss_over(slice(None), torch.ones_like(labels_P, dtype=torch.bool))
    blocks = [vocabulary.block(level) for level in range(vocabulary.num_levels)]
    return torch.stack([loss_over(b, (labels_P >= b.start) & (labels_P < b.stop)) for b in blocks]).sum()


@contextlib.contextmanager
def sid_loss_in_forward(
    model: nn.Module, vocabulary: SidVocabulary, sid_loss: SidLoss, label_smoothing: float = 0.0
) -> Iterator[None]:
    """While open, `model(input_ids, attention_mask, labels=…)` returns the SID loss and computes no other logits.

    Args:
        model: Causal LM or a PEFT model over one; calls without `labels` are left as they are.
        vocabulary: Blocks of the levels.
        sid_loss: What the softmax runs over.
        label_smoothing: See `sid_cross_entropy`.
    """
    base = causal_lm(model)
    original, own = base.forward, vars(base).get("forward")

    @functools.wraps(original)
    def forward(
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return original(input_ids=input_ids, **inputs)
        states = run_backbone(base, input_ids=input_ids, **{**inputs, "use_cache": False})
        hidden = states.last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        total = sid_cross_entropy(base, hidden[supervised], targets[supervised], vocabulary, sid_loss, label_smoothing)
        count = supervised.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / count)

    base.forward = forward
    try:
        yield
    finally:
        del base.forward  # also what TRL and accelerate put over it
        if own is not None:
            base.forward = own
