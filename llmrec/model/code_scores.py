"""What a code's score is, to tree beam search and to `SidLogitsProcessor` alike.

A code's score is its log-probability normalised over
    vocabulary  the whole vocabulary, as Hugging Face beam search scores; for models trained with `sid_loss: full`,
    level       the codes of its level; for models trained with `sid_loss: level`, whose other logits mean nothing,
    children    the legal continuations of its prefix; GRPO's policy.

Shapes: K codes of a level that a table uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.model.backbone import logit_scale, logits, project, scale_logits
from llmrec.sid.vocabulary import SidVocabulary

NormalizeOver = Literal["vocabulary", "level", "children"]
LOGITS_AT_ONCE = 2**28


def check_normalize_over(value: str) -> None:
    """Refuse a name that scores cannot be normalised over.

    Raises:
        ValueError: If it is none of the three.
    """
    if value not in get_args(NormalizeOver):
        raise ValueError(f"normalize_over is '{value}'; choose from {', '.join(get_args(NormalizeOver))}.")


def code_log_probs(
    model: PreTrainedModel,
    hidden: Tensor,
    vocabulary: SidVocabulary,
    level: int,
    codes: Tensor,
    legal: Tensor,
    normalize_over: NormalizeOver,
    temperature: float = 1.0,
    compiled: bool = False,
) -> Tensor:
    """Log-probability of some codes of a level.

    Args:
        model: Causal LM.
        hidden: (…, hidden) states that predict the code.
        vocabulary: Tokens of the codes.
        level: Level of the code.
        codes: (…, W) codes of the level.
        legal: (…, W) bool, which of them count.
        normalize_over: See the file header.
        temperature: Divides the logits.
        compiled: Whether `torch.compile` fuses what is fusible.

    Returns:
        (…, W) float32, -inf where a code is not legal.
    """
    block = vocabulary.block(level)
    scores = logits(model, hidden, block)
    if temperature != 1:
        scores = scores / temperature
    if normalize_over == "vocabulary":
        scores = scores - log_normalizer(model, hidden, temperature, compiled)
    elif normalize_over == "level":
        scores = scores.log_softmax(dim=-1)
    return mask_codes(scores.gather(-1, codes), legal, normalize_over)


def log_normalizer(model: PreTrainedModel, hidden: Tensor, temperature: float, compiled: bool) -> Tensor:
    """Log of the softmax's denominator over the whole vocabulary; (…, hidden) -> (…, 1) float32.

    A part of the rows at a time: 50 beams of 128 users would need 4 GB of logits for 150 thousand tokens.
    """
    logsumexp = _compiled_logsumexp() if compiled else _logsumexp
    rows = max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    factor, cap = logit_scale(model)
    parts = hidden.flatten(0, -2).split(rows)
    sums = [logsumexp(project(model, part), factor / temperature, cap and cap / temperature) for part in parts]
    return torch.cat(sums).reshape(*hidden.shape[:-1], 1)


def _logsumexp(projected: Tensor, factor: float, cap: float | None) -> Tensor:
    return scale_logits(projected, factor, cap).logsumexp(dim=-1)


@functools.cache
def _compiled_logsumexp() -> Callable[[Tensor, float, float | None], Tensor]:
    """Reads the logits as they were projected, where eager operations write three float32 copies of them."""
    return torch.compile(_logsumexp, dynamic=True)


def normalize_codes(scores: Tensor, legal: Tensor, normalize_over: NormalizeOver) -> Tensor:
    """Mask a level's scores, normalised over the level or the legal codes; over the vocabulary they come that way.

    Args:
        scores: (…, codes in the vocabulary's block), of which a table may use the first K.
        legal: (…, K) bool.
        normalize_over: See the file header.

    Returns:
        (…, K), -inf where a code is not legal.
    """
    if normalize_over == "level":
        scores = scores.log_softmax(dim=-1)
    return mask_codes(scores[..., : legal.shape[-1]], legal, normalize_over)


def mask_codes(scores: Tensor, legal: Tensor, normalize_over: NormalizeOver) -> Tensor:
    """-inf where a code is not legal; over `children`, what is left is normalised."""
    scores = scores.masked_fill(~legal, -torch.inf)
    if normalize_over == "children":
        scores = scores.log_softmax(dim=-1).masked_fill(~legal, -torch.inf)  # NaN where nothing is legal
    return scores
