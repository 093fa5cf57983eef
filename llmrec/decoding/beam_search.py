"""Tree beam search: the best SIDs of each prompt, in one prefill and one small block of tokens per level.

At every level all beams of a row go through the model as one block, in which each sees the prompt and its own path; the
cache is written once and never copied or reordered. The result is that of `generate(num_beams=…)` with
`SidLogitsProcessor`, without the beams' copies of the prompt.

What a code's score is, is told in `llmrec.model.code_scores`.

Shapes: B rows, M beams, T prompt tokens, P prefix tokens, L levels.

Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to beams instead of drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.logits_processor import check_prompt_end
from llmrec.decoding.search import Beams, Paths, SearchProblem
from llmrec.decoding.tree_forward import TreeForward, pad_right
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm
from llmrec.model.code_scores import NormalizeOver
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary


@torch.no_grad()
def tree_beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    trie: SidTrie,
    vocabulary: SidVocabulary,
    num_beams: int | Sequence[int],
    normalize_over: NormalizeOver = "vocabulary",
    leaf_filter: LeafFilter | None = None,
    prefix_ids: Tensor | None = None,
) -> Beams:
    """The `num_beams` best SIDs of each prompt.

    Args:
        model: Causal LM, or a PEFT model over one.
        input_ids: (B, T) prompts, padded on either side.
        attention_mask: (B, T), 0 at padding; all ones when left out.
        trie: Legal SIDs.
        vocabulary: Their tokens.
        num_beams: Beam width; or the width at each level, of which the last is the number of answers.
        normalize_over: What a code's probability is normalised over; see `llmrec.model.code_scores`.
        leaf_filter: Leaves that each row may reach.
        prefix_ids: (P,) tokens that stand before every prompt, such as the instruction; they are run once.

    Returns:
        Beams; fewer than `num_beams` are filled where fewer SIDs are legal.

    Raises:
        ValueError: If a width is not positive, the filter is of another batch or trie, the vocabulary or model lacks
            codes of the trie, a prompt ends inside a SID, prompt and SID do not fit the model's context, or the model
            cannot attend along a tree.
    """
    widths = beam_widths(num_beams, trie.num_levels)
    space = SearchProblem(causal_lm(model), trie, vocabulary, normalize_over)
    space.check_batch(input_ids, leaf_filter, prefix_ids)
    check_prompt_end(input_ids, trie, vocabulary, attention_mask)
    return search_beams(space, *pad_right(input_ids, attention_mask), widths, leaf_filter, prefix_ids)


def beam_widths(num_beams: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Beam width at each level.

    Raises:
        ValueError: If a width is not positive, or there is not one per level.
    """
    widths = (num_beams,) * num_levels if isinstance(num_beams, int) else tuple(num_beams)
    if len(widths) != num_levels:
        raise ValueError(f"num_beams has {len(widths)} widths, but SIDs have {num_levels} levels; give one for each.")
    if min(widths) < 1:
        raise ValueError(f"num_beams is {num_beams}; at least 1 is needed.")
    return widths


def search_beams(
    space: SearchProblem,
    input_ids: Tensor,
    lengths: Tensor,
    widths: Sequence[int],
    leaf_filter: LeafFilter | None = None,
    prefix_ids: Tensor | None = None,
) -> Beams:
    """`tree_beam_search` of checked arguments; (B, T) ids padded on the right and (B,) lengths."""
    trie, num_levels = space.trie, space.trie.num_levels
    forward = TreeForward(space.model, sum(widths[:-1]), prefix_ids)
    hidden = forward.prefill(input_ids, lengths)
    paths = Paths.start(len(input_ids), num_levels, input_ids.device)
    finished = _no_beams(len(input_ids), widths[-1], num_levels, input_ids.device)
    for level, width in enumerate(widths):
        if level > 0:
            hidden = forward.advance(space.tokens(paths, level - 1), paths.parents)
        onward = space.continuations(hidden, paths, level, leaf_filter)
        scores = onward.scores.flatten(1)
        if level > 0 and trie.has_leaves(level):
            finished = _merge(finished, _finish(paths.complete(trie, level), scores, width))
        paths = paths.follow(onward, scores.topk(min(width, scores.shape[1]), dim=1).indices, level)
    return _merge(finished, paths.complete(trie, num_levels))


def _no_beams(batch_size: int, num_beams: int, num_levels: int, device: torch.device) -> Beams:
    return Beams(
        torch.full((batch_size, num_beams, num_levels), EMPTY, device=device),
        torch.full((batch_size, num_beams), -torch.inf, device=device),
        torch.full((batch_size, num_beams), -1, device=device),
    )


def _finish(complete: Beams, continued: Tensor, width: int) -> Beams:
    """The complete beams that end at this level.

    As in `generate`: ending costs nothing and competes with the continuations of the other beams; it counts where it
    ranks among the first `width`.

    Args:
        complete: Running beams that are whole SIDs; the others unfilled.
        continued: (B, M * W) scores of all continuations.
        width: Beams kept at this level.
    """
    every = torch.cat([continued, complete.scores], dim=1)
    last = every.topk(min(width, every.shape[1]), dim=1).values[:, -1:]
    outranked = complete.scores < last
    return Beams(complete.codes, complete.scores.masked_fill(outranked, -torch.inf), complete.leaves)


def _merge(finished: Beams, ended: Beams) -> Beams:
    """The best of both, as many as were finished before; unfilled ones last."""
    every = finished.concatenated(ended)
    unfilled = every.scores.isneginf()
    every = Beams(
        every.codes.masked_fill(unfilled.unsqueeze(-1), EMPTY), every.scores, every.leaves.masked_fill(unfilled, -1)
    )
    return every.take(every.scores.topk(finished.scores.shape[1], dim=1).indices)
