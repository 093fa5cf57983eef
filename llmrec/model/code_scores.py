"""Scores of codes from the states of a model: projected on no more tokens than their normalisation needs.

`llmrec.sid.normalization` defines the score of a code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.model.backbone import logit_scale, logits, project, scale_logits
from llmrec.model.trained_rows import matrix_of
from llmrec.sid.normalization import NormalizeOver, mask_codes
from llmrec.sid.vocabulary import SidVocabulary

LOGITS_AT_ONCE = 2**28


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
        normalize_over: Tokens that scores are normalised over; see `llmrec.sid.normalization`.
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
