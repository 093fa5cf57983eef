"""Rankings by a head: every item scored at once, by item rows alone or mixed with the beams of a search, or by the head
that answers instead of beams.

`items` ranks by p(item) = softmax over all items of the state before the answer times the item rows. It needs one pass
over the prompt and no beams, and it is exact. `mixture` ranks by

    (1 - w) p_sid(item) + w p_items(item),

where p_sid is the exponential of the score of the item's best beam, 0 for an item outside the beam, and w is the
mixture weight of the checkpoint. The sum runs over the whole catalogue, so only p_sid depends on the beam width.

Shapes: B prompts, M beams, N items, E pairs of an item and a SID of its own, U distinct SIDs, R slots of a ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.search import Beams
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.model.backbone import causal_lm
from llmrec.model.checkpoint import SidConfig
from llmrec.model.heads.item_rows import ItemRows
from llmrec.runtime.device import from_host
from llmrec.sid.item_tokens import ItemTokens


class ItemScorer:
    """Log-probabilities of all items, by their rows alone or mixed with the beams of a search.

    Args:
        model: Causal LM.
        trie: Trie that is searched; an item with several SIDs counts at its best beam.
        sid_config: Tokens of the items, and the mixture weight.

    Raises:
        ValueError: If items have no rows.
    """

    def __init__(self, model: PreTrainedModel, trie: SidTrie, sid_config: SidConfig):
        self.model, self.head = causal_lm(model), ItemRows(ItemTokens.required(sid_config.vocabulary.items))
        self.weight = sid_config.mixture_weight
        self.num_leaves, owners = trie.num_leaves, trie.owners
        ranks = np.arange(self.num_leaves)
        leaves_E = ranks if owners.starts is None else ranks.repeat(np.diff(owners.starts))
        self.items_E = from_host(np.asarray(owners.rows, dtype=np.int64), trie.device)
        self.leaves_E = from_host(leaves_E, trie.device)

    @torch.no_grad()
    def log_probs(self, states: Tensor) -> Tensor:
        """Score all items by their rows; (B, hidden) states before the answer -> (B, N) float32."""
        return self.head.log_probs(self.model, states)

    def mixture(self, states: Tensor, beams: Beams) -> Tensor:
        """Score all items by the mixture.

        Args:
            states: (B, hidden) states before the answer.
            beams: Beams of the same prompts.

        Returns:
            (B, N) float32 log of (1 - w) p_sid + w p_items; -inf where both are 0.
        """
        by_rows = self.log_probs(states).exp()
        return ((1 - self.weight) * self.sid_probabilities(beams) + self.weight * by_rows).log()

    def sid_probabilities(self, beams: Beams) -> Tensor:
        """Spread the probabilities of beams over their items; (B, N) float32, 0 for items outside the beam."""
        num_rows = len(beams.leaves)
        leaves = torch.where(beams.leaves < 0, self.num_leaves, beams.leaves)  # unfilled beams go to a place behind
        by_leaf = beams.scores.new_zeros(num_rows, self.num_leaves + 1).scatter_(1, leaves, beams.scores.exp())
        by_item = by_leaf.new_zeros(num_rows, self.head.num_items)
        return by_item.scatter_reduce_(1, self.items_E.expand(num_rows, -1), by_leaf[:, self.leaves_E], "amax")


def best_leaves(scores_BN: Tensor, trie: SidTrie, leaf_filter: LeafFilter | None, width: int) -> tuple[Tensor, Tensor]:
    """Select the best permitted semantic IDs of each prompt by the scores of their items, which share one.

    Args:
        scores_BN: (B, N) scores of the items.
        trie: Trie of the items, each of which has one semantic ID.
        leaf_filter: Leaves that each prompt may get; all when left out.
        width: Largest number of semantic IDs.

    Returns:
        (B, R) int64 leaves, best first, and (B, R) their scores; -1 and -inf where none is left.
    """
    starts = trie.leaf_starts
    first_U = trie.leaf_items if starts is None else trie.leaf_items[starts[:-1]]
    scores_BU = scores_BN[:, from_host(np.asarray(first_U, dtype=np.int64), trie.device)]
    if leaf_filter is not None:
        leaves_BU = torch.arange(trie.num_leaves, device=trie.device).expand_as(scores_BU)
        scores_BU = scores_BU.masked_fill(~leaf_filter.permits(leaves_BU, leaves_BU + 1), -torch.inf)
    return best_items(scores_BU, None, width)


def best_items(scores_BN: Tensor, barred_BN: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """Select the best permitted items of each prompt.

    Args:
        scores_BN: (B, N) scores of the items.
        barred_BN: (B, N) bool, items that must not be returned; None bars nothing.
        width: Largest number of items.

    Returns:
        (B, R) int64 item rows, best first, and (B, R) their scores; -1 and -inf where no item is left.
    """
    scores = scores_BN if barred_BN is None else scores_BN.masked_fill(barred_BN, -torch.inf)
    best = scores.topk(min(width, scores.shape[1]), dim=1)
    return best.indices.masked_fill(best.values.isneginf(), UNFILLED), best.values


def barred_items(
    num_items: int,
    exclude: Sequence[np.ndarray] | None,
    allow: Sequence[AllowList | None] | None,
    device: torch.device,
) -> Tensor | None:
    """Mark the items that the prompts of a batch must not get.

    Args:
        num_items: N.
        exclude: Item rows barred for each prompt; nothing is barred when left out.
        allow: Items that each prompt is restricted to, None for any; nobody is restricted when left out.
        device: Device of the result.

    Returns:
        (B, N) bool; None if nothing is barred.
    """
    if exclude is None and allow is None:
        return None
    num_rows = len(exclude if exclude is not None else allow or ())
    barred = torch.zeros(num_rows, num_items, dtype=torch.bool, device=device)
    if allow is not None:
        lists = list(dict.fromkeys(allow))  # each once: requests often share one
        permitted = torch.ones(len(lists), num_items, dtype=torch.bool, device=device)
        for place, one in enumerate(lists):
            if one is not None:
                permitted[place] = False
                permitted[place, from_host(one.items, device)] = True
        barred = ~permitted[from_host(np.array([lists.index(one) for one in allow]), device)]
    if exclude is not None:
        rows = np.arange(len(exclude)).repeat([len(each) for each in exclude])
        items = np.concatenate([np.empty(0, np.int64), *exclude])
        barred[from_host(rows, device), from_host(items, device)] = True
    return barred


def leaf_ranking(
    trie: SidTrie,
    leaves: np.ndarray,
    scores: np.ndarray,
    invalid: np.ndarray,
    exclude: Sequence[np.ndarray] | None,
    allow: Sequence[AllowList | None] | None,
    is_one_to_one: bool,
) -> Ranking:
    """List the items of the best leaves.

    Args:
        trie: Trie of the leaves.
        leaves: (B, M) leaves, best first; -1 where there is none.
        scores: (B, M) their scores.
        invalid: (B,) number of beams that are no item.
        exclude: Item rows barred for each prompt.
        allow: Items that each prompt is restricted to; None for any.
        is_one_to_one: True if every leaf is one item, and every item one leaf.

    Returns:
        Ranking of the B prompts; an item with several leaves counts at its best one.
    """
    if is_one_to_one:
        items = np.where(leaves < 0, UNFILLED, trie.leaf_items[leaves])
        return Ranking(items, np.broadcast_to(np.arange(leaves.shape[1]), leaves.shape), scores, invalid)
    nobody = [None] * len(leaves)
    rows = [list(_expand(trie, *row)) for row in zip(leaves, exclude or nobody, allow or nobody, strict=True)]
    width = max(1, *map(len, rows))
    items, groups = np.full((2, len(rows), width), UNFILLED)
    item_scores = np.full((len(rows), width), -np.inf)
    for i, row in enumerate(rows):
        for slot, (item, beam) in enumerate(row):
            items[i, slot], groups[i, slot], item_scores[i, slot] = item, beam, scores[i, beam]
    return Ranking(items, groups, item_scores, invalid)


def _expand(
    trie: SidTrie, leaves: np.ndarray, exclude: np.ndarray | None, allow: AllowList | None
) -> Iterator[tuple[int, int]]:
    """Pair the items of a prompt's beams with their beams."""
    barred = set() if exclude is None else set(exclude.tolist())
    for beam, leaf in enumerate(leaves):
        for item in trie.items(leaf).tolist() if leaf >= 0 else ():
            if item not in barred and (allow is None or item in allow):
                barred.add(item)
                yield item, beam
