"""Tree beam search: the best SIDs of each prompt, in one prefill and one small block of tokens per level.

At every level all beams of a prompt go through the model as one block, in which each beam sees the prompt and its own
path. The cache is written once and never copied or reordered. The result is that of `generate(num_beams=…)` with
`SidLogitsProcessor`, without the beams' copies of the prompt. `llmrec.sid.normalization` defines the score of a code.

Shapes: B prompts, M beams, T prompt tokens, P prefix tokens, L levels.

Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to beams instead of drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.grammar import check_prompt_end
from llmrec.decoding.search import Beams, Paths, SearchProblem
from llmrec.decoding.tree_forward import TreeForward, pad_right
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.leaf_mask import LeafMask
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm
from llmrec.sid.normalization import NormalizeOver
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
    length_penalty: float = 0.0,
) -> Beams:
    """Find the `num_beams` best SIDs of each prompt.

    Args:
        model: Causal LM, or a PEFT model over one.
        input_ids: (B, T) int64 prompts, padded on either side.
        attention_mask: (B, T) int64, 0 at padding; None for all ones.
        trie: Legal SIDs, on the model's device.
        vocabulary: Tokens of their codes.
        num_beams: Beam width; or the width at each level, of which the last is the number of answers.
        normalize_over: Tokens that a code's probability is normalised over; see `llmrec.sid.normalization`.
        leaf_filter: Leaves that each prompt may reach; all when left out.
        prefix_ids: (P,) int64 tokens that stand before every prompt, such as the instruction; they are run once.
        length_penalty: Power of its number of codes that the score of a complete SID is divided by; while beams grow,
            they compete by their sums, as in `generate`.

    Returns:
        Beams of each prompt, best first: `codes` (B, num_beams, L) int64, `scores` (B, num_beams) float32 and `leaves`
        (B, num_beams) int64. If fewer SIDs are legal, the last beams are unfilled: code -1, score -inf, leaf -1.

    Raises:
        ValueError: If a width is not positive, `length_penalty` is negative, the filter is of another batch or trie,
            the vocabulary or model lacks codes of the trie, a prompt ends inside a SID, prompt and SID do not fit the
            model's context, the model cannot attend along a tree, or a score is NaN.

    Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to beams instead of drafts.

    Examples:
        `model`, `tokenizer`, `table` and `sid_config` belong to a checkpoint of six items; see `SidConfig.load`.

        >>> from llmrec import SidTrie, tree_beam_search
        >>> trie = SidTrie(table)
        >>> input_ids, attention_mask = sid_config.encode([[0, 1], [5]], table, tokenizer)
        >>> beams = tree_beam_search(model, input_ids, attention_mask, trie, sid_config.vocabulary, num_beams=4)
        >>> beams.codes.shape  # prompts, beams, levels
        torch.Size([2, 4, 3])
        >>> bool((beams.codes == trie.codes_of(beams.leaves)).all())  # every beam is a SID of the table
        True
    """
    widths = beam_widths(num_beams, trie.num_levels)
    problem = SearchProblem(causal_lm(model), trie, vocabulary, normalize_over, length_penalty=length_penalty)
    problem.check_batch(input_ids, leaf_filter, prefix_ids)
    check_prompt_end(input_ids, trie, vocabulary, attention_mask)
    mask = None if leaf_filter is None else leaf_filter.mask
    beams = search_beams(problem, *pad_right(input_ids, attention_mask), widths, mask, prefix_ids)[0]
    beams.check()
    return beams


def beam_widths(num_beams: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Spread a beam width over the levels, or check that there is one for each level.

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
    problem: SearchProblem,
    input_ids: Tensor,
    lengths: Tensor,
    widths: Sequence[int],
    mask: LeafMask | None = None,
    prefix_ids: Tensor | None = None,
) -> tuple[Beams, Tensor]:
    """Run `tree_beam_search` on checked arguments: (B, T) ids padded on the right and (B,) lengths.

    Returns:
        The beams, and the (B, hidden) state of each prompt's last token, which the first code is chosen by.
    """
    trie, num_levels = problem.trie, problem.trie.num_levels
    forward = TreeForward(problem.model, sum(widths[:-1]), prefix_ids)
    hidden = forward.prefill(input_ids, lengths)
    states = hidden.squeeze(1)
    paths = Paths.start(len(input_ids), num_levels, input_ids.device)
    finished = Beams.unfilled(len(input_ids), widths[-1], num_levels, input_ids.device)
    for level, width in enumerate(widths):
        if level > 0:
            hidden = forward.advance(problem.tokens(paths, level - 1), paths.parents)
        continuations = problem.continuations(hidden, paths, level, mask)
        scores = continuations.scores.flatten(1)
        if level > 0 and trie.has_leaves(level):
            ended = _finish(paths.complete(trie, level), scores, width)
            finished = _merge(finished, ended.divided(level**problem.length_penalty))
        paths = paths.follow(continuations, scores.topk(min(width, scores.shape[1]), dim=1).indices, level)
    ended = paths.complete(trie, num_levels).divided(num_levels**problem.length_penalty)
    return _merge(finished, ended), states


def _finish(complete: Beams, continued: Tensor, width: int) -> Beams:
    """Keep the complete beams that end at this level.

    As in `generate`, ending costs nothing and competes with the continuations of the other beams: a beam ends if it
    ranks among the first `width`.

    Args:
        complete: Running beams that are complete SIDs; the others are unfilled.
        continued: (B, M * W) scores of all continuations.
        width: Beams kept at this level.
    """
    every = torch.cat([continued, complete.scores], dim=1)
    last = every.topk(min(width, every.shape[1]), dim=1).values[:, -1:]
    outranked = complete.scores < last
    return Beams(complete.codes, complete.scores.masked_fill(outranked, -torch.inf), complete.leaves)


def _merge(finished: Beams, ended: Beams) -> Beams:
    """Return the best of both, as many as were finished before; unfilled ones last."""
    every = finished.concatenated(ended)
    unfilled = every.scores.isneginf()
    every = Beams(
        every.codes.masked_fill(unfilled.unsqueeze(-1), EMPTY), every.scores, every.leaves.masked_fill(unfilled, -1)
    )
    return every.take(every.scores.topk(finished.scores.shape[1], dim=1).indices)
