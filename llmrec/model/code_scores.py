"""Scores of codes, one definition for tree beam search and `SidLogitsProcessor`.

The score of a code is its log-probability, normalised over one of
    vocabulary  the whole vocabulary, as Hugging Face beam search scores,
    level       the codes of its level, or the words that items have there; for models trained like that, whose other
                logits mean nothing,
    children    the legal continuations of its prefix; this is GRPO's policy.

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
from llmrec.model.trained_rows import matrix_of
from llmrec.sid.vocabulary import SidVocabulary

NormalizeOver = Literal["vocabulary", "level", "children"]
LOGITS_AT_ONCE = 2**28


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
    """Compute the log-probabilities of some codes of a level.

    Args:
        model: Causal LM.
        hidden: (…, hidden) states that predict the code.
        vocabulary: Tokens of the codes.
        level: Level of the code.
        codes: (…, W) codes of the level.
        legal: (…, W) bool, True for codes that may be chosen.
        normalize_over: Tokens that scores are normalised over; see the header of this file.
        temperature: Divisor of the logits.
        compiled: Fuse operations by `torch.compile`.

    Returns:
        (…, W) float32, -inf for codes that are not legal.
    """
    if not vocabulary.tells_level and normalize_over == "vocabulary":
        found = _log_probs_at_once(model, hidden, vocabulary.tokens_at(level, codes), None, temperature, compiled)
        return mask_codes(found, legal, normalize_over)
    if vocabulary.has_one_block and normalize_over == "level":
        found = _log_probs_at_once(model, hidden, codes, vocabulary.block(level), temperature, compiled)
        return mask_codes(found, legal, normalize_over)
    scores = logits(model, hidden, vocabulary.rows(level, hidden.device))
    if temperature != 1:
        scores = scores / temperature
    if normalize_over == "vocabulary":
        scores = scores - log_normalizer(model, hidden, temperature, compiled)
    elif normalize_over == "level":
        scores = scores.log_softmax(dim=-1)
    return mask_codes(scores.gather(-1, codes), legal, normalize_over)


def log_normalizer(model: PreTrainedModel, hidden: Tensor, temperature: float, compiled: bool) -> Tensor:
    """Compute the log of the softmax's denominator over the whole vocabulary; (…, hidden) -> (…, 1) float32.

    States are projected in parts: 50 beams of 128 users would need 4 GB of logits for 150 thousand tokens.
    """
    logsumexp = _compiled_logsumexp() if compiled else _logsumexp
    scale = _scale(model, temperature)
    sums = [logsumexp(project(model, part), *scale) for part in hidden.flatten(0, -2).split(_rows_at_once(model))]
    return torch.cat(sums).reshape(*hidden.shape[:-1], 1)


def _log_probs_at_once(
    model: PreTrainedModel, hidden: Tensor, tokens: Tensor, among: slice | None, temperature: float, compiled: bool
) -> Tensor:
    """Log-probabilities of (…, W) tokens among a slice of all, or all, by one projection of (…, hidden) states.

    The rows of a level's words lie anywhere in the output matrix. To gather them and project a second time would take
    as long again at a level of many words. Pieces are many; of their logits no more than a part is held at a time.
    """
    logsumexp = _compiled_logsumexp() if compiled else _logsumexp
    rows, scale = _rows_at_once(model), _scale(model, temperature)
    found = []
    for part, chosen in zip(hidden.flatten(0, -2).split(rows), tokens.flatten(0, -2).split(rows), strict=True):
        projected = project(model, part, among)
        found.append(scale_logits(projected.gather(-1, chosen), *scale) - logsumexp(projected, *scale).unsqueeze(-1))
    return torch.cat(found).view(tokens.shape)


def _rows_at_once(model: PreTrainedModel) -> int:
    """Number of states that are projected together."""
    return max(1, LOGITS_AT_ONCE // len(matrix_of(model.get_output_embeddings())))


def _scale(model: PreTrainedModel, temperature: float) -> tuple[float, float | None]:
    """Factor and soft cap of logits that are divided by a temperature."""
    factor, cap = logit_scale(model)
    return factor / temperature, cap and cap / temperature


def _logsumexp(projected: Tensor, factor: float, cap: float | None) -> Tensor:
    return scale_logits(projected, factor, cap).logsumexp(dim=-1)


@functools.cache
def _compiled_logsumexp() -> Callable[[Tensor, float, float | None], Tensor]:
    """Compile `_logsumexp`: eager operations would write three float32 copies of the projected logits."""
    return torch.compile(_logsumexp, dynamic=True)


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
