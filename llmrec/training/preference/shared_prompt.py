"""Log-probabilities of many SIDs per prompt, with the prompt computed once and gradients.

The completions stand behind their prompt in one row, as siblings: each sees the prompt and its own codes, and takes the
positions that it would have alone. So one pass over T + M (L - 1) tokens stands for M passes over T + L, with the same
log-probabilities and gradients. The last code of a SID is only predicted, so it is not run.

The pass lives in the model's `forward`, as that of sft does, and so runs through whatever wraps the model.
What a code's probability is normalised over is told in `llmrec.model.code_scores`.

Unlike tree_attention.py, whose cache is written in place and one level at a time, this is one ordinary pass under
an attention mask: autograd and gradient checkpointing need nothing special.

Shapes: B prompts, T prompt tokens, M completions, L levels, S = T + M (L - 1) tokens of a row, R vocabulary rows.

Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to training.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from llmrec.decoding.tree_attention import additive_mask, check_attention
from llmrec.decoding.tree_forward import pad_right
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm, check_context, check_rows, forward_replaced, logits, run_backbone
from llmrec.model.code_scores import NormalizeOver, check_normalize_over
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary

TAKES_ANY_MASK = ("sdpa", "eager")  # attention implementations that a mask of one's own can be given to


@dataclass
class SiblingScores(ModelOutput):
    """Scores of the completions of each prompt.

    Attributes:
        log_probs: (B, M, L) float32 log-probability of each code; 0 beyond a SID's length, -inf where a SID leaves the
            trie.
        entropies: (B, M, L) float32 entropy of the distribution that each code was scored by, without gradient; 0
            beyond a SID's length.
    """

    log_probs: Tensor | None = None
    entropies: Tensor | None = None


@contextlib.contextmanager
def sibling_scores_in_forward(
    model: nn.Module,
    vocabulary: SidVocabulary,
    trie: SidTrie | None = None,
    normalize_over: NormalizeOver = "vocabulary",
    temperature: float = 1.0,
) -> Iterator[None]:
    """While open, `model(input_ids, attention_mask, completions=…)` returns the SiblingScores of (B, M, L) token ids.

    Completions are SIDs, -1 beyond the end of a shorter one and in rows that have fewer; prompts may be padded on
    either side.

    Args:
        model: Causal LM or a PEFT model over one; calls without `completions` are left as they are.
        vocabulary: Tokens of the codes.
        trie: Legal SIDs; needed for `children` alone.
        normalize_over: What a code's probability is normalised over.
        temperature: Divides the logits.

    Raises:
        ValueError: If the model cannot attend along a tree or lacks token rows, or `children` is without a trie.
    """
    base = causal_lm(model)
    _check(base, vocabulary, trie, normalize_over, temperature)
    original, tries = base.forward, {}

    @functools.wraps(original)
    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        completions: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if completions is None:
            return original(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        device = input_ids.device
        if trie is not None and device not in tries:  # where the Trainer has put the model
            tries[device] = trie.to(device)
        states = sibling_states(base, input_ids, attention_mask, completions)
        return score_siblings(base, states, completions, vocabulary, tries.get(device), normalize_over, temperature)

    with forward_replaced(base, forward):
        yield


def sibling_states(
    base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, completions: Tensor
) -> list[Tensor]:
    """Hidden states that predict the codes.

    Args:
        base: Causal LM.
        input_ids: (B, T) prompts, padded on either side.
        attention_mask: (B, T), 0 at padding; all ones when left out.
        completions: (B, M, L) token ids, -1 beyond a SID's length.

    Returns:
        (B, 1, hidden) of the prompts' last tokens for level 0, which all completions share, then (B, M, hidden) for
        each further level.
    """
    num_completions, num_levels = completions.shape[1:]
    check_context(base, input_ids.shape[1] + num_levels)
    prompts, lengths = pad_right(input_ids, attention_mask)
    run = completions[..., :-1].clamp(min=0)  # what is never read may be any token
    positions = torch.arange(prompts.shape[1], device=prompts.device).minimum(lengths.unsqueeze(1) - 1)
    behind = lengths.view(-1, 1, 1) + torch.arange(num_levels - 1, device=prompts.device)
    visible = siblings_mask(lengths, prompts.shape[1], num_completions, num_levels - 1)
    device = prompts.device.type
    is_cast = torch.is_autocast_enabled(device)  # a mask of another type would be copied in every layer
    states = run_backbone(
        base,
        input_ids=torch.cat([prompts, run.flatten(1)], dim=1),
        position_ids=torch.cat([positions, behind.expand_as(run).flatten(1)], dim=1),
        attention_mask=additive_mask(visible, torch.get_autocast_dtype(device) if is_cast else base.dtype),
        use_cache=False,
    ).last_hidden_state
    last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    grown = states[:, prompts.shape[1] :].unflatten(1, (num_completions, num_levels - 1))
    return [states.gather(1, last), *grown.unbind(dim=2)]


def siblings_mask(lengths: Tensor, num_tokens: int, num_completions: int, num_run: int) -> Tensor:
    """Which column each token sees.

    Args:
        lengths: (B,) tokens of each prompt, padded on the right.
        num_tokens: T.
        num_completions: M.
        num_run: Tokens of a completion that are run.

    Returns:
        (B, S, S) bool: prompts causally, completions their prompt and their own tokens up to themselves.
    """
    device = lengths.device
    column = torch.arange(num_tokens + num_completions * num_run, device=device)
    is_prompt = column < num_tokens
    completion = torch.where(is_prompt, -1, (column - num_tokens) // max(num_run, 1))
    own = (completion.unsqueeze(1) == completion).tril()  # (S, S); a prompt's columns are completion -1
    prompt_seen = ~is_prompt.unsqueeze(1) & (column < lengths.view(-1, 1, 1))  # (B, S, S)
    return own | prompt_seen


def score_siblings(
    base: PreTrainedModel,
    states: list[Tensor],
    completions: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie | None,
    normalize_over: NormalizeOver,
    temperature: float,
) -> SiblingScores:
    """Score the codes of completions by the states of `sibling_states`."""
    nodes = torch.full(completions.shape[:2], ROOT, device=completions.device)
    log_probs, entropies = [], []
    for level, (hidden, tokens) in enumerate(zip(states, completions.unbind(dim=2), strict=True)):
        rows = slice(None) if normalize_over == "vocabulary" else vocabulary.block(level)
        scores = logits(base, hidden, rows) / temperature  # (B, 1 or M, R)
        is_code = tokens != EMPTY
        chosen = (tokens - (rows.start or 0)).clamp(min=0)
        if normalize_over == "children":
            children = trie.children(nodes, level)  # (B, M, codes of the trie)
            # Outside the trie nothing is legal; all of the level is, so that gradients stay numbers.
            legal = (children >= 0) | (nodes < 0).unsqueeze(-1)
            scores = scores[..., : legal.shape[-1]].masked_fill(~legal, -torch.inf)
            nodes = children.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        distribution = scores.log_softmax(dim=-1)
        entropies.append(_entropy(distribution.detach()).expand_as(is_code).masked_fill(~is_code, 0.0))
        chosen = distribution.expand(*chosen.shape, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        if normalize_over == "children":
            chosen = chosen.masked_fill(nodes < 0, -torch.inf)
        log_probs.append(chosen.masked_fill(~is_code, 0.0))
    return SiblingScores(log_probs=torch.stack(log_probs, dim=2), entropies=torch.stack(entropies, dim=2))


def _entropy(distribution: Tensor) -> Tensor:
    """(…, R) log-probabilities -> (…)."""
    return -(distribution.exp() * distribution.masked_fill(distribution.isneginf(), 0.0)).sum(dim=-1)


def _check(
    base: PreTrainedModel,
    vocabulary: SidVocabulary,
    trie: SidTrie | None,
    normalize_over: NormalizeOver,
    temperature: float,
) -> None:
    """Refuse what cannot be scored, before anything is.

    Raises:
        ValueError: As `sibling_scores_in_forward` does.
    """
    check_normalize_over(normalize_over)
    check_attention(base)
    check_rows(base, vocabulary.token_range.stop)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive.")
    if trie is not None:
        vocabulary.check_table(trie)
    elif normalize_over == "children":
        raise ValueError("normalize_over 'children' needs the trie whose children are meant; give one.")
    if base.config._attn_implementation not in TAKES_ANY_MASK:
        raise ValueError(
            f"attn_implementation '{base.config._attn_implementation}' takes no mask of a tree; load the model with "
            f"{' or '.join(TAKES_ANY_MASK)}."
        )
