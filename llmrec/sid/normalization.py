"""Normalisation of the scores of codes, one definition for searches and for processors of logits, in any engine.

The score of a code is its log-probability, normalised over one of
    vocabulary  the whole vocabulary, as Hugging Face beam search scores,
    level       the codes of its level, or the words that items have there; for models trained like that, whose other
                logits mean nothing,
    children    the legal continuations of its prefix; this is GRPO's policy.

Only torch is imported here, so that an inference engine can read it in an environment of its own.

Shapes: K codes of a level that a table uses.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

NormalizeOver = Literal["vocabulary", "level", "children"]


def check_normalize_over(value: str) -> None:
    """Refuse an unknown choice of `normalize_over`.

    Raises:
        ValueError: If it is none of the three.
    """
    if value not in get_args(NormalizeOver):
        raise ValueError(f"normalize_over is '{value}'; choose from {', '.join(get_args(NormalizeOver))}.")


def check_length_penalty(value: float) -> None:
    """Refuse a power that scores cannot be divided by.

    Raises:
        ValueError: If it is no finite number from 0 on.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"length_penalty is {value!r}; a number from 0 on is needed.")


def normalize_codes(scores: Tensor, legal: Tensor, normalize_over: NormalizeOver) -> Tensor:
    """Normalise the scores of a level's codes and mask those that are not legal.

    Args:
        scores: (…, block) scores of all codes in the vocabulary's block, of which a table may use the first K. For
            `vocabulary` they are normalised already.
        legal: (…, K) bool, True for codes that may be chosen.
        normalize_over: Tokens that scores are normalised over; see the header of this file.

    Returns:
        (…, K), -inf for codes that are not legal.
    """
    if normalize_over == "level":
        scores = scores.log_softmax(dim=-1)
    return mask_codes(scores[..., : legal.shape[-1]], legal, normalize_over)


def mask_codes(scores: Tensor, legal: Tensor, normalize_over: NormalizeOver) -> Tensor:
    """Set the scores of codes that are not legal to -inf, and normalise the others over `children`."""
    scores = scores.masked_fill(~legal, -torch.inf)
    if normalize_over == "children":
        scores = scores.log_softmax(dim=-1).masked_fill(~legal, -torch.inf)  # NaN where nothing is legal
    return scores
