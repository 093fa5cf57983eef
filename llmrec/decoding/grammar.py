"""Places of tokens in the grammar of SIDs: the node of the trie that they lead to, and prompts that end inside a SID.

Shapes: R rows, T tokens of a row, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.vocabulary import SidVocabulary

NO_TOKEN = -1
ORDINARY = -1  # level of a token that is no code


def check_prompt_end(
    input_ids: Tensor, trie: SidTrie, vocabulary: SidVocabulary, attention_mask: Tensor | None = None
) -> None:
    """Refuse prompts that end inside a SID, because the first code of an answer would be wrong there.

    Where codes are words, a word of a prompt may as well belong to its text, and where they are pieces, a history may
    end with any; so no prompt is refused.

    A SID that the trie leaves out counts as complete at the last level and, if the trie's SIDs differ in length, at
    every level.

    Args:
        input_ids: (R, T) prompts.
        trie: Legal SIDs.
        vocabulary: Tokens of their codes.
        attention_mask: (R, T), 0 at padding on either side; all ones when left out.

    Raises:
        ValueError: If a prompt is all padding, or its last token is a code after which its SID continues.
    """
    size = trie.num_levels
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    end = (attention_mask * places).amax(dim=1)
    if bool((end == 0).any()):
        raise ValueError(f"The prompt of row {int((end == 0).nonzero()[0])} is all padding; it needs a token.")
    if not vocabulary.tells_level:
        return
    padded = pad(input_ids.masked_fill(attention_mask == 0, NO_TOKEN), (size, 0), value=NO_TOKEN)
    window = padded.gather(1, end.unsqueeze(1) + torch.arange(size, device=input_ids.device))
    level, nodes, is_leaf = last_sid(window, trie, vocabulary)
    goes_on = (nodes >= 0) & ~is_leaf
    if not any(map(trie.has_leaves, range(size))):
        goes_on |= (nodes < 0) & (level >= 0) & (level < size - 1)
    if bool(goes_on.any()):
        row = int(goes_on.nonzero()[0])
        tokens = [token for token in window[row, -1 - int(level[row]) :].tolist() if token != NO_TOKEN]
        raise ValueError(
            f"The prompt of row {row} ends inside a SID, in the tokens {tokens}; end it after a complete SID or text."
        )


def last_sid(window: Tensor, trie: SidTrie, vocabulary: SidVocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """Find the SID, complete or begun, that the last tokens of each row form.

    Args:
        window: (R, L) last tokens; -1 before the first.
        trie: Legal SIDs.
        vocabulary: Tokens of their codes.

    Returns:
        (R,) level of the last token, -1 for an ordinary one; (R,) node that it and the codes before it lead to, -1 if
        there is none; (R,) bool, nodes that are leaves.
    """
    last, num_levels = window[:, -1], trie.num_levels
    level = torch.full_like(last, -1)
    for start in vocabulary.starts:
        level += last >= start
    level = level.masked_fill(last >= vocabulary.token_range.stop, ORDINARY)
    nodes = torch.full_like(level, ROOT).masked_fill(level < 0, -1)
    is_leaf = torch.zeros_like(level, dtype=torch.bool)
    for depth in range(num_levels):
        column = (num_levels - 1 - level + depth).clamp(max=num_levels - 1)
        child = child_of(nodes, window.gather(1, column.unsqueeze(1)).squeeze(1), depth, trie, vocabulary)
        nodes = torch.where(level >= depth, child, nodes)
        is_leaf |= (level == depth) & trie.is_leaf(child, depth + 1)
    return level, nodes, is_leaf


def child_of(nodes: Tensor, tokens: Tensor, level: int, trie: SidTrie, vocabulary: SidVocabulary) -> Tensor:
    """(R,) node that each row goes to by its token; -1 if the trie has no such prefix."""
    return trie.child(nodes, vocabulary.codes_at(level, tokens), level)
