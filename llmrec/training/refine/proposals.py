"""Proposals: free semantic IDs that a model finds likely for each item, and what the item would gain by them.

Each prompt of an item is searched under the trie of the free semantic IDs. Those with the most probability over all its
prompts are then scored exactly after each of them, as is the one that the item has. The gain of a move is the
difference of the two mean log-probabilities. Each code is normalised over its level, because a model that was trained
over the children of the catalogue's trie says nothing about free codes.

Source: SIIT (arXiv:2412.17171), whose refinement lets the LLM propose identifiers and avoids collisions. It does not
say how they are scored; searching all prompts and scoring the union exactly is ours.

Shapes: N items, C proposals of an item, P prompts, M beams, F free SIDs, L levels.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.decoder import PADDING, SidDecoder
from llmrec.decoding.paths.exact_scores import exact_scores
from llmrec.decoding.search import SearchProblem
from llmrec.decoding.tree_forward import pad_right
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm
from llmrec.runtime.device import from_host
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.refine.evidence import Evidence, Prompts, first_of_each

PROPOSALS = 15  # free semantic IDs that are scored for an item
NONE = -1


class Proposals(NamedTuple):
    """Free semantic IDs of each item.

    Attributes:
        sids: (N, C) int64 places among the free semantic IDs, -1 where there is none.
        gains: (N, C) gain of a move to each, in nats; -inf where there is none.
    """

    sids: np.ndarray
    gains: np.ndarray


class Proposer:
    """Search and exact scores of free semantic IDs.

    Args:
        model: Fine-tuned causal LM, on the device that it runs on.
        table: Semantic IDs of the catalogue, one of each item.
        free_FL: (F, L) codes of the free ones, F at least 1.
        vocabulary: Tokens of the codes.
    """

    def __init__(self, model: PreTrainedModel, table: SidTable, free_FL: np.ndarray, vocabulary: SidVocabulary):
        self.table, self.free_FL, self.device = table, free_FL, model.device
        codes = dataclasses.replace(vocabulary, items=None)  # a free SID is no item, so it has no row of one
        self.own_NL = table.codes(np.arange(table.num_items))
        free = SidTrie.from_codes(free_FL, table.level_sizes, device=model.device)
        self.free_of_leaf = free.leaf_items  # each free SID is a leaf of its own
        self.decoder = SidDecoder(model, free, codes, min(PROPOSALS, len(free_FL)), "level")
        every = SidTrie.from_codes(np.concatenate([self.own_NL, free_FL]), table.level_sizes, device=model.device)
        self.problem = SearchProblem(causal_lm(model), every, codes, "level")

    def propose(self, evidence: Evidence, batch_size: int) -> Proposals:
        """Propose free semantic IDs for all items.

        Args:
            evidence: Source of their prompts.
            batch_size: Number of prompts read together, if those of one item are not more.
        """
        step = max(1, batch_size // evidence.most_prompts)
        every = np.arange(self.table.num_items)
        parts = [self._of(rows, evidence.prompts(rows)) for rows in np.split(every, every[step::step])]
        return Proposals(*map(np.concatenate, zip(*parts, strict=True)))

    @torch.no_grad()
    def _of(self, rows: np.ndarray, prompts: Prompts) -> Proposals:
        """Propose for a few items."""
        if not len(prompts.tokens):
            return Proposals(np.full((len(rows), PROPOSALS), NONE), np.full((len(rows), PROPOSALS), -np.inf))
        ids, mask = self._padded(prompts)
        beams = self.decoder(ids, mask)
        leaves, log_probs = beams.leaves.cpu().numpy(), beams.scores.double().cpu().numpy()
        sids_NC = self._likeliest(leaves, np.exp(log_probs) * prompts.weight[:, None], prompts.owner, len(rows))
        codes_NCL = np.concatenate([self.own_NL[rows, None], self.free_FL[sids_NC]], axis=1)
        codes_PCL = from_host(codes_NCL[prompts.owner], self.device)
        scores_PC = exact_scores(self.problem, *pad_right(ids, mask), codes_PCL, None).double().cpu().numpy()
        means_NC = np.zeros(codes_NCL.shape[:2])
        np.add.at(means_NC, prompts.owner, prompts.weight[:, None] * scores_PC)
        return Proposals(sids_NC, np.where(sids_NC == NONE, -np.inf, means_NC[:, 1:] - means_NC[:, :1]))

    def _padded(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """(P, T) token ids, padded on the right, and their mask."""
        lengths = np.array([len(tokens) for tokens in prompts.tokens])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, PADDING)
        ids[mask] = np.concatenate(prompts.tokens)
        return from_host(ids, self.device), from_host(mask.astype(np.int64), self.device)

    def _likeliest(self, leaves: np.ndarray, mass: np.ndarray, owner: np.ndarray, num_items: int) -> np.ndarray:
        """(n, C) free SIDs with the most probability over all prompts of each of n items; -1 behind them.

        Args:
            leaves: (P, M) leaves that were found, -1 for none.
            mass: (P, M) their weighted probabilities.
            owner: (P,) item of each prompt.
            num_items: n.
        """
        found = leaves >= 0
        key, where = np.unique((owner[:, None] * len(self.free_FL) + leaves)[found], return_inverse=True)
        total = np.bincount(where, weights=mass[found], minlength=len(key))
        item, leaf = np.divmod(key, len(self.free_FL))
        order = np.lexsort((leaf, -total, item))
        kept = order[first_of_each(item[order], PROPOSALS)] if len(order) else order
        sids = np.full((num_items, PROPOSALS), NONE)
        counts = np.bincount(item[kept], minlength=num_items)
        sids[np.arange(PROPOSALS) < counts[:, None]] = self.free_of_leaf[leaf[kept]]
        return sids
