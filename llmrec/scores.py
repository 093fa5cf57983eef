"""What a code's score is, to tree beam search and to `SidLogitsProcessor` alike.

A code's score is its log-probability normalised over
    vocabulary  the whole vocabulary, as Hugging Face beam search scores; for models trained with `sid_loss: full`,
    level       the codes of its level; for models trained with `sid_loss: level`, whose other logits mean nothing,
    children    the legal continuations of its prefix; GRPO's policy.

Shapes: K codes of a level that a table uses.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.backbone import logits
from llmrec.vocab import SidVocabulary

NormalizeOver = Literal["vocabulary", "level", "children"]


def check_normalize_over(value: str) -> None:
    """Refuse a name that scores cannot be normalised over.

    Raises:
        ValueError: If it is none of the three.
    """
    if value not in get_args(NormalizeOver):
        raise ValueError(f"normalize_over is '{value}'; choose from {', '.join(get_args(NormalizeOver))}.")


def level_log_probs(
    model: PreTrainedModel,
    hidden: Tensor,
    vocabulary: SidVocabulary,
    level: int,
    legal: Tensor,
    normalize_over: NormalizeOver,
) -> Tensor:
    """Log-probability of every code of a level.

    Args:
        model: Causal LM.
        hidden: (…, hidden) states that predict the code.
        vocabulary: Tokens of the codes.
        level: Level of the code.
        legal: (…, K) bool.
        normalize_over: See the file header.

    Returns:
        (…, K) float32, -inf where a code is not legal.
    """
    block = vocabulary.block(level)
    if normalize_over == "vocabulary":
        every = logits(model, hidden)
        return normalize_codes(every[..., block] - every.logsumexp(dim=-1, keepdim=True), legal, normalize_over)
    return normalize_codes(logits(model, hidden, block), legal, normalize_over)


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
    scores = scores[..., : legal.shape[-1]].masked_fill(~legal, -torch.inf)
    if normalize_over == "children":
        scores = scores.log_softmax(dim=-1).masked_fill(~legal, -torch.inf)  # NaN where nothing is legal
    return scores
