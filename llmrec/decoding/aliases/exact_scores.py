"""Exact scores of given semantic IDs, those that a search would give them if it kept all of them.

Shapes: B prompts, T prompt tokens, P prefix tokens, C semantic IDs of a prompt, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmrec.decoding.search import Paths, SearchProblem
from llmrec.decoding.tree_forward import TreeForward
from llmrec.sid.codes import EMPTY


def exact_scores(
    problem: SearchProblem, input_ids: Tensor, lengths: Tensor, codes_BCL: Tensor, prefix_ids: Tensor | None
) -> Tensor:
    """Score given semantic IDs by following them, all of a prompt in one block for each level.

    Args:
        problem: Model, trie and scoring.
        input_ids: (B, T) prompts, padded on the right.
        lengths: (B,) number of tokens of each prompt.
        codes_BCL: (B, C, L) codes of SIDs of the trie, -1 beyond the end of a SID.
        prefix_ids: (P,) tokens that stand before every prompt.

    Returns:
        (B, C) float32 summed log-probabilities.
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
        continuations = problem.continuations(hidden, paths, level, None)
        width = continuations.codes.shape[2]
        wanted = codes_BCL[:, :, level].unsqueeze(2)
        is_wanted = (continuations.codes == wanted) & (continuations.nodes >= 0)
        places = is_wanted.to(torch.uint8).argmax(dim=2) + (parents * width if level else 0)
        paths = paths.follow(continuations, places, level)
        scores_BC = torch.where(codes_BCL[:, :, level] == EMPTY, scores_BC, paths.scores)
    return scores_BC
