"""Paths of given semantic IDs through the trie, with the scores that a search would give them if it kept all of them.

Shapes: B prompts, T prompt tokens, P prefix tokens, C semantic IDs of a prompt, W continuations of a prefix, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmrec.decoding.search import Continuations, Paths, SearchProblem
from llmrec.decoding.tree_forward import TreeForward
from llmrec.decoding.trie.leaf_mask import LeafMask
from llmrec.sid.codes import EMPTY


class Step(NamedTuple):
    """One level of the paths.

    Attributes:
        hidden: (B, C, hidden) states that the codes of the level are scored by; (B, 1, hidden) at the first level.
        continuations: All codes that may follow each prefix, (B, C, W); (B, 1, W) at the first level.
        scores: (B, C) summed log-probabilities so far; those of a SID that has ended stay.
    """

    hidden: Tensor
    continuations: Continuations
    scores: Tensor


def follow(
    problem: SearchProblem,
    input_ids: Tensor,
    lengths: Tensor,
    codes_BCL: Tensor,
    prefix_ids: Tensor | None,
    mask: LeafMask | None = None,
) -> Iterator[Step]:
    """Follow given semantic IDs down the trie, all of a prompt in one block for each level.

    Args:
        problem: Model, trie and scoring.
        input_ids: (B, T) prompts, padded on the right.
        lengths: (B,) number of tokens of each prompt.
        codes_BCL: (B, C, L) codes of SIDs of the trie, -1 beyond the end of a SID.
        prefix_ids: (P,) tokens that stand before every prompt.
        mask: Leaves that each prompt may reach; all when left out. A SID that it bars has the score -inf.

    Yields:
        The levels, from the first.
    """
    num_sids, num_levels = codes_BCL.shape[1:]
    forward = TreeForward(problem.model, num_sids * (num_levels - 1), prefix_ids)
    hidden = forward.prefill(input_ids, lengths)
    paths = Paths.start(len(input_ids), num_levels, input_ids.device)
    scores_BC = hidden.new_zeros(codes_BCL.shape[:2], dtype=torch.float32)
    parents = torch.arange(num_sids, device=input_ids.device).expand_as(scores_BC)
    for level in range(num_levels):
        if level > 0:
            hidden = forward.advance(problem.tokens(paths, level - 1), paths.parents)
        continuations = problem.continuations(hidden, paths, level, mask)
        width = continuations.codes.shape[2]
        is_wanted = (continuations.codes == codes_BCL[:, :, level].unsqueeze(2)) & (continuations.nodes >= 0)
        places = is_wanted.to(torch.uint8).argmax(dim=2) + (parents * width if level else 0)
        paths = paths.follow(continuations, places, level)
        reached = paths.scores.masked_fill(~is_wanted.any(dim=2) | scores_BC.isneginf(), -torch.inf)
        scores_BC = torch.where(codes_BCL[:, :, level] == EMPTY, scores_BC, reached)
        yield Step(hidden, continuations, scores_BC)


def exact_scores(
    problem: SearchProblem, input_ids: Tensor, lengths: Tensor, codes_BCL: Tensor, prefix_ids: Tensor | None
) -> Tensor:
    """Score given semantic IDs, as `follow` takes them.

    Returns:
        (B, C) float32 summed log-probabilities.
    """
    for step in follow(problem, input_ids, lengths, codes_BCL, prefix_ids):
        scores_BC = step.scores
    return scores_BC
