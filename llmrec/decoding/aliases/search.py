"""Ranking by aliases: a search in each, the union of what they find, and exact scores of all of it in every alias.

Every alias reads the history in its own way and is searched under its own trie, with its share of the beams. An item
that any search has found is then scored in all aliases by following its semantic IDs, and ranked by the mean of its
log-probabilities. So the aliases are an ensemble within one model, and no item is missed by the accident of one of its
semantic IDs.

Sources: RecForest (NeurIPS 2022), which ranks the union of its trees' lists by the sum of their log-probabilities. The
released MTGRec (arXiv:2504.04400) fine-tunes a model for each tokenizer and ranks by votes before scores; here one
model serves all, and an item that one list lacks is scored there, too.

Shapes: B prompts, A aliases, M beams of an alias, N items, C candidates of a prompt, U leaves of a trie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.decoder import PADDING, SidDecoder
from llmrec.decoding.paths.exact_scores import exact_scores
from llmrec.decoding.tree_forward import pad_right
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.evaluation.ranking import UNFILLED, Ranking, check_scores
from llmrec.model.history.aliases import AliasHistoryEncoder
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.runtime.device import from_host
from llmrec.sid.normalization import NormalizeOver
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary


class AliasSearch:
    """Scores of items by a model whose catalogue has aliases.

    Args:
        model: Extended causal LM, on the device that it runs on.
        encoder: Aliases of the catalogue.
        vocabulary: Tokens of the codes.
        num_beams: Beam width of all aliases together.
        normalize_over: Tokens that a code's probability is normalised over; see `llmrec.sid.normalization`.
        prefix_ids: (P,) int64 tokens that stand before every prompt.
        capture: Capture searches as CUDA graphs; by default on a GPU.
        compiled: Fuse the model's layers by `torch.compile`; see `llmrec.decoding.decoder`.

    Attributes:
        twins_N: (N,) int64 number of each item's semantic IDs in all aliases; items that share all of them tie.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: AliasHistoryEncoder,
        vocabulary: SidVocabulary,
        num_beams: int,
        normalize_over: NormalizeOver,
        prefix_ids: Tensor,
        capture: bool | None = None,
        compiled: bool = False,
    ):
        codes = np.concatenate([table.all_codes for table in encoder.tables], axis=1)
        _, first_of, twins = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        self.twins_N = twins.reshape(-1)
        self.first_twin_N = from_host(first_of[self.twins_N], model.device)
        width = -(-num_beams // len(encoder.tables))
        options = (normalize_over, prefix_ids, capture, compiled)
        self.aliases = [
            OneAlias(
                table,
                SidHistoryEncoder(table, vocabulary),
                SidDecoder(model, trie, vocabulary, min(width, trie.num_leaves), *options),
            )
            for table in encoder.tables
            for trie in [SidTrie(table, device=model.device)]
        ]

    @torch.no_grad()
    def scores(
        self,
        histories: Sequence[np.ndarray],
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[AllowList | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score the items that a search in any alias finds.

        Args:
            histories: Item rows of each user, oldest first, none empty.
            exclude: Item rows barred for each user.
            allow: Items that each user is restricted to; None for any.

        Returns:
            (B, N) float32 mean log-probabilities of the items over all aliases, -inf for items that no search has
            found, NaN where a search has met one; and (B,) int64 number of beams that are no item.
        """
        prompts = [alias.prompts(histories) for alias in self.aliases]
        found_BN, invalid_B, is_wrong_B = zip(
            *(alias.find(each, exclude, allow) for alias, each in zip(self.aliases, prompts, strict=True)), strict=True
        )
        is_found_BN = torch.stack(found_BN).any(dim=0)
        is_candidate_BC, items_BC = is_found_BN.to(torch.uint8).topk(self.most_items, dim=1)
        each_ABC = [alias.log_probs(each, items_BC) for alias, each in zip(self.aliases, prompts, strict=True)]
        mean_BC = torch.stack(each_ABC).mean(dim=0).masked_fill(is_candidate_BC == 0, -torch.inf)
        scores_BN = torch.full(is_found_BN.shape, -torch.inf, device=mean_BC.device)
        scores_BN.scatter_(1, items_BC, mean_BC)
        scores_BN.masked_fill_(torch.stack(is_wrong_B).any(dim=0)[:, None], torch.nan)
        return scores_BN[:, self.first_twin_N], torch.stack(invalid_B).sum(dim=0)

    @property
    def most_items(self) -> int:
        """Largest number of items that a search can find."""
        found = sum(alias.decoder.widths[-1] * alias.most_items for alias in self.aliases)
        return min(len(self.twins_N), found)

    def ranking(self, items: np.ndarray, scores: np.ndarray, invalid: np.ndarray) -> Ranking:
        """Put the items that share their semantic IDs in every alias side by side, in one tie group.

        Args:
            items: (B, R) int64 item rows by falling scores, -1 behind them.
            scores: (B, R) scores.
            invalid: (B,) int64 number of beams that are no item.

        Raises:
            ScoresNotFinite: If a score is NaN.
        """
        check_scores(scores, items != UNFILLED)
        twins = np.where(items == UNFILLED, len(self.twins_N), self.twins_N[items])
        order = np.lexsort((twins, -scores), axis=1)
        items, twins = np.take_along_axis(items, order, axis=1), np.take_along_axis(twins, order, axis=1)
        groups = np.cumsum(np.diff(twins, axis=1, prepend=twins[:, :1]) != 0, axis=1)
        return Ranking(items, groups, np.take_along_axis(scores, order, axis=1), invalid)


class OneAlias:
    """Search and exact scores in one alias.

    Args:
        table: Semantic IDs of the alias.
        encoder: Token ids of histories in it.
        decoder: Search under its trie.

    Attributes:
        most_items: Most items that share a semantic ID.
    """

    def __init__(self, table: SidTable, encoder: SidHistoryEncoder, decoder: SidDecoder):
        self.encoder, self.decoder = encoder, decoder
        self.device, trie = decoder.model.device, decoder.problem.trie
        counts = np.ones(trie.num_leaves, np.int64) if trie.leaf_starts is None else np.diff(trie.leaf_starts)
        leaf_N = np.empty(table.num_items, np.int64)
        leaf_N[trie.leaf_items] = np.arange(trie.num_leaves).repeat(counts)
        self.leaf_N, self.codes_NL = from_host(leaf_N, self.device), from_host(table.all_codes, self.device)
        self.most_items = int(counts.max())

    def prompts(self, histories: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(B, T) token ids of histories without the prefix, padded on the right, and their (B, T) attention mask."""
        ids, mask = self.encoder.pad_prompts((), histories, PADDING)
        return from_host(ids, self.device), from_host(mask, self.device)

    def find(
        self,
        prompts: tuple[Tensor, Tensor],
        exclude: Sequence[np.ndarray] | None,
        allow: Sequence[AllowList | None] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search, without waiting for the device.

        Returns:
            (B, N) bool, permitted items of the beams; (B,) int64 number of beams that are no item; and (B,) bool, True
            where a score is NaN.
        """
        trie = self.decoder.problem.trie
        leaf_filter = LeafFilter.of(trie, exclude, allow and [one and one.items for one in allow])
        beams, _ = self.decoder.search(*prompts, leaf_filter)
        is_item = (beams.codes == trie.codes_of(beams.leaves)).all(dim=2) & (beams.leaves >= 0)
        leaves = torch.where(is_item, beams.leaves, trie.num_leaves)  # others go to a place behind
        found_BU = torch.zeros(len(leaves), trie.num_leaves + 1, dtype=torch.bool, device=leaves.device)
        found_BU.scatter_(1, leaves, True)
        invalid = (beams.scores.isfinite() & ~is_item).sum(dim=1)
        return found_BU[:, self.leaf_N], invalid, beams.scores.isnan().any(dim=1)

    def log_probs(self, prompts: tuple[Tensor, Tensor], items_BC: Tensor) -> Tensor:
        """(B, C) log-probabilities of items after prompts."""
        ids, lengths = pad_right(*prompts)
        return exact_scores(self.decoder.problem, ids, lengths, self.codes_NL[items_BC], self.decoder.prefix_ids)
