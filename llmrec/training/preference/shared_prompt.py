"""Log-probabilities of many SIDs per prompt, with gradients, while the prompt is computed once.

All completions follow their prompt in one row, as siblings: each sees the prompt and its own codes, and has the
positions that it would have alone. So one pass over T + M (L - 1) tokens replaces M passes over T + L, with the same
log-probabilities and gradients. The last code of a SID is only predicted, so it is not run.

The pass lives in the model's `forward`, like the loss of sft, and so runs through anything that wraps the model.
`llmrec.sid.normalization` defines the tokens that a code's probability is normalised over.

Unlike tree_attention.py, which writes a cache in place and one level at a time, this is one ordinary pass under an
attention mask: autograd and gradient checkpointing need nothing special.

Shapes: B prompts, T prompt tokens, M completions, L levels, S = T + M (L - 1) tokens in a row of the batch, R tokens
that a code is chosen from.

Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to training.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.decoding.tree_attention import additive_mask, check_attention
from llmrec.decoding.tree_forward import pad_right
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm, check_context, check_rows, forward_replaced, logits, run_backbone
from llmrec.sid.normalization import NormalizeOver, check_normalize_over
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary

TAKES_ANY_MASK = ("sdpa", "eager")  # attention implementations that take a mask of our own


class SiblingScores(NamedTuple):
    """Scores of the completions of each prompt.

    Attributes:
        log_probs: (B, M, L) float32 log-probability of each code; 0 beyond a SID's length, -inf where a SID leaves the
            trie.
        entropies: (B, M, L) float32 entropy of the distribution that each code was chosen from, without gradient; 0
            beyond a SID's length.
    """

    log_probs: Tensor
    entropies: Tensor


@contextlib.contextmanager
def sibling_scores_in_forward(
    model: nn.Module,
    vocabulary: SidVocabulary,
    trie: SidTrie | None = None,
    normalize_over: NormalizeOver = "vocabulary",
) -> Iterator[None]:
    """Let `model(input_ids, attention_mask, completions=…)` return SiblingScores while this context is open.

    Completions are the (B, M, L) token ids of SIDs. They are -1 beyond the end of a shorter SID, and where a prompt has
    fewer of them. Prompts may be padded on either side.

    Args:
        model: Causal LM or a PEFT model over one; calls without `completions` are left as they are.
        vocabulary: Tokens of the codes.
        trie: Legal SIDs; only `children` needs it.
        normalize_over: Tokens that a code's probability is normalised over.

    Raises:
        ValueError: If the model cannot attend along a tree or lacks token rows, or `children` has no trie.
    """
    base = causal_lm(model)
    _check(base, vocabulary, trie, normalize_over)
    original = base.forward
    tries: dict[torch.device, SidTrie] = {}

    @functools.wraps(original)
    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        completions: Tensor | None = None,
        **inputs: object,
    ) -> object:
        if input_ids is None or completions is None:
            return original(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        device = input_ids.device
        if trie is not None and device not in tries:  # the device that the Trainer has moved the model to
            tries[device] = trie.to(device)
        states = sibling_states(base, input_ids, attention_mask, completions)
        return score_siblings(base, states, completions, vocabulary, tries.get(device), normalize_over)

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
    """Attention mask of prompts followed by their completions.

    Args:
        lengths: (B,) tokens of each prompt, padded on the right.
        num_tokens: T.
        num_completions: M.
        num_run: Tokens of a completion that are run.

    Returns:
        (B, S, S) bool, the columns that each token sees: prompts are causal; a completion sees its prompt and its own
        tokens up to the current one.
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
) -> SiblingScores:
    """Score the codes of completions by the states of `sibling_states`.

    Args:
        base: Causal LM.
        states: Hidden states, one tensor per level.
        completions: (B, M, L) token ids, -1 beyond a SID's length.
        vocabulary: Tokens of the codes.
        trie: Legal SIDs, on the device of the states; given where `normalize_over` is `children`.
        normalize_over: Tokens that a code's probability is normalised over.
    """
    legal_sids = trie if normalize_over == "children" else None
    nodes = torch.full(completions.shape[:2], ROOT, device=completions.device)
    log_probs, entropies = [], []
    for level, (hidden, tokens) in enumerate(zip(states, completions.unbind(dim=2), strict=True)):
        over_all = normalize_over == "vocabulary"
        rows = slice(None) if over_all else vocabulary.rows(level, hidden.device)
        scores = logits(base, hidden, rows)  # (B, 1 or M, R)
        is_code = tokens != EMPTY
        chosen = (tokens if over_all else vocabulary.codes_at(level, tokens)).clamp(min=0)
        if legal_sids is not None:
            children = legal_sids.children(nodes, level)  # (B, M, codes of the trie)
            # Outside the trie nothing is legal; all of the level is, so that gradients stay numbers.
            legal = (children >= 0) | (nodes < 0).unsqueeze(-1)
            scores = scores[..., : legal.shape[-1]].masked_fill(~legal, -torch.inf)
            nodes = children.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        distribution = scores.log_softmax(dim=-1)
        entropies.append(_entropy(distribution.detach()).expand_as(is_code).masked_fill(~is_code, 0.0))
        chosen = distribution.expand(*chosen.shape, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        if legal_sids is not None:
            chosen = chosen.masked_fill(nodes < 0, -torch.inf)
        log_probs.append(chosen.masked_fill(~is_code, 0.0))
    return SiblingScores(log_probs=torch.stack(log_probs, dim=2), entropies=torch.stack(entropies, dim=2))


def _entropy(distribution: Tensor) -> Tensor:
    """(…, R) log-probabilities -> (…)."""
    return -(distribution.exp() * distribution.masked_fill(distribution.isneginf(), 0.0)).sum(dim=-1)


def _check(
    base: PreTrainedModel, vocabulary: SidVocabulary, trie: SidTrie | None, normalize_over: NormalizeOver
) -> None:
    """Refuse what cannot be scored, before anything is computed.

    Raises:
        ValueError: As `sibling_scores_in_forward` does.
    """
    check_normalize_over(normalize_over)
    check_attention(base)
    check_rows(base, vocabulary.num_rows)
    if trie is not None:
        vocabulary.check_table(trie)
    elif normalize_over == "children":
        raise ValueError("normalize_over 'children' needs the trie of the legal SIDs; give one.")
    if base.config._attn_implementation not in TAKES_ANY_MASK:
        raise ValueError(
            f"attn_implementation '{base.config._attn_implementation}' does not take the mask of a tree; load the "
            f"model with {' or '.join(TAKES_ANY_MASK)}."
        )
