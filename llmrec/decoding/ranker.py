"""SidRanker: a model and a SID table as a ranker of item rows. `Recommender` answers with it, `evaluate` measures it.

Shapes: B prompts, T tokens, M beams, W items of a ranking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.configs.recommend import RankBy
from llmrec.decoding.aliases.search import AliasSearch
from llmrec.decoding.decoder import PADDING, SegmentedDecoder, SidDecoder
from llmrec.decoding.item_ranking import ItemScorer, barred_items, best_items, best_leaves, leaf_ranking
from llmrec.decoding.tree_forward import PromptReader, Rounding
from llmrec.decoding.trie.allow_list import AllowList, ItemRows, resolve_allow_lists
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.evaluation.ranking import Ranking, check_scores, default_num_beams
from llmrec.model.backbone import causal_lm
from llmrec.model.checkpoint import SidConfig
from llmrec.model.heads.choice import make_head
from llmrec.model.history.aliases import AliasHistoryEncoder
from llmrec.model.history.choice import make_history_encoder
from llmrec.runtime.device import from_host, to_host
from llmrec.sid.table import SidTable

MAX_DECODERS = 4  # beam widths whose decoders are kept: on a GPU each holds up to 64 graphs
Searcher = SidDecoder | AliasSearch | SegmentedDecoder
Exclusions = Sequence[np.ndarray] | None
AllowLists = Sequence[ItemRows | AllowList | None] | None
# The fields of Requests, of which the last two may be left out.
Batch = (
    tuple[Sequence[np.ndarray]]
    | tuple[Sequence[np.ndarray], Exclusions]
    | tuple[Sequence[np.ndarray], Exclusions, AllowLists]
)


class Requests(NamedTuple):
    """Requests that are decoded together, item rows throughout.

    Attributes:
        histories: History of each user, oldest first.
        exclude: Items barred for each user; nothing is barred when left out.
        allow: Items that each user is restricted to, None for any; nobody is restricted when left out.
    """

    histories: Sequence[np.ndarray]
    exclude: Exclusions = None
    allow: AllowLists = None


class SidRanker:
    """Rankings of the whole catalogue by tree beam search, item rows or both, the head of the checkpoint, or aliases.

    Args:
        model: Extended causal LM, on the device that it runs on.
        table: Semantic IDs of the catalogue.
        sid_config: Vocabulary, history length and scoring that belong to the weights.
        prefix_ids: Tokens before every history.
        compiled: Fuse the model's layers by `torch.compile`; see `llmrec.decoding.decoder`.
        capture: Capture searches as CUDA graphs; by default on a GPU.
        rank: Scores to rank by; see `llmrec.decoding.item_ranking`. A head gives those of `sid`.

    Raises:
        ValueError: If `rank` needs item rows, and the checkpoint has none, or the weights of its head are absent.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        table: SidTable,
        sid_config: SidConfig,
        prefix_ids: Sequence[int],
        compiled: bool = False,
        capture: bool | None = None,
        rank: RankBy = "sid",
    ):
        self.model, self.table, self.sid_config = model, table, sid_config
        self.compiled, self.capture, self.rank_by = compiled, capture, rank
        self.encoder = make_history_encoder(table, sid_config.vocabulary)
        self.trie = SidTrie(table, device=model.device)
        self.prefix_ids = torch.tensor(prefix_ids, device=model.device)
        self._decoders: dict[int, Searcher] = {}  # by num_beams, the latest last
        self._rounding = Rounding()
        self.one_at_a_time = threading.Lock()  # a server's threads share the decoders and the device
        self._item_scorer = None if rank == "sid" else ItemScorer(model, self.trie, sid_config)
        self._head = make_head(model, self.encoder, sid_config.vocabulary, model.device)
        self._knows_by_codes = sid_config.vocabulary.head is None or sid_config.vocabulary.head.by_codes
        self._reader = PromptReader(model, self.prefix_ids, capture, compiled) if self._head else None
        has_aliases = isinstance(self.encoder, AliasHistoryEncoder)
        self._most_beams = len(table.all_codes) if has_aliases else self.trie.num_leaves
        self._is_one_to_one = self.trie.leaf_starts is None and self.trie.num_leaves == table.num_items

    def rank(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[ItemRows | AllowList | None] | None = None,
        num_beams: int | None = None,
    ) -> Ranking:
        """Rank the most likely next items of each history, with tie groups.

        Args:
            histories: Item rows of each user, oldest first.
            k: Number of items needed; sets the default beam width.
            exclude: Item rows barred for each user.
            allow: Item rows that each user is restricted to; None for any.
            num_beams: Beam width; that of `default_num_beams` when left out.

        Returns:
            Ranking of the B histories, (B, W); all items of every beam are listed.

        Raises:
            ValueError: If `k` is not positive or exceeds `num_beams`, or a history is empty.
        """
        return next(self.rank_batches([(histories, exclude, allow)], k, num_beams))

    def rank_batches(self, batches: Iterable[Batch], k: int, num_beams: int | None = None) -> Iterator[Ranking]:
        """Rank batch after batch: the first is queued at once, and the device works on the next while one is read.

        Args:
            batches: Histories with their exclusions and allow-lists, as `rank` takes them.
            k: Number of items needed; sets the default beam width.
            num_beams: Beam width; that of `default_num_beams` when left out.

        Returns:
            Rankings in the order of the batches.

        Raises:
            ValueError: As `rank` does.
        """
        self.check_beams(k, num_beams)
        num_beams = num_beams or default_num_beams(self.table.num_items, [k], self.table)
        decoder = self._reader or self._decoder(min(num_beams, self._most_beams))
        remaining = iter(batches)

        def start() -> Callable[[], Ranking] | None:
            for batch in remaining:
                with self.one_at_a_time:
                    return self._start(decoder, Requests(*batch), num_beams)
            return None

        def rankings(answer: Callable[[], Ranking] | None) -> Iterator[Ranking]:
            while answer is not None:
                following = start()
                yield answer()
                answer = following

        return rankings(start())

    def round_up(self, rounding: Rounding) -> None:
        """Round the sizes of captured batches in another way from now on; graphs that were captured are dropped."""
        self._rounding = rounding
        self._decoders.clear()
        if self._reader is not None:
            self._reader.rounding = rounding

    def check_beams(self, k: int, num_beams: int | None) -> None:
        """Refuse a beam width that cannot hold the items of a request.

        Args:
            k: Number of items needed.
            num_beams: Beam width that was asked for; None for that of `default_num_beams`.

        Raises:
            ValueError: If `k` is not positive or exceeds `num_beams`.
        """
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 is needed.")
        if num_beams is not None and num_beams < min(k, self.trie.num_leaves):
            raise ValueError(f"num_beams is {num_beams}, fewer than k = {k}; give {k} or more, or leave it out.")

    def _decoder(self, num_beams: int) -> Searcher:
        """Decoder of a beam width; those that were not asked for lately are dropped, with their graphs."""
        with self.one_at_a_time:
            decoder = self._decoders.pop(num_beams, None) or self._make_decoder(num_beams)
            self._decoders[num_beams] = decoder
            while len(self._decoders) > MAX_DECODERS:
                del self._decoders[next(iter(self._decoders))]
        return decoder

    def _make_decoder(self, num_beams: int) -> Searcher:
        options = (num_beams, self.sid_config.normalize_over, self.prefix_ids, self.capture, self.compiled)
        if isinstance(self.encoder, AliasHistoryEncoder):
            return AliasSearch(self.model, self.encoder, self.sid_config.vocabulary, *options)
        vocabulary, length_penalty = self.sid_config.vocabulary, self.sid_config.length_penalty
        decoder = SidDecoder(self.model, self.trie, vocabulary, *options, length_penalty)
        decoder.rounding = self._rounding
        ways = vocabulary.segmentations
        return SegmentedDecoder(decoder, self.encoder, ways) if ways else decoder

    @property
    def is_captured(self) -> bool:
        """True if searches are captured as CUDA graphs."""
        return self.model.device.type == "cuda" if self.capture is None else self.capture

    @torch.no_grad()
    def _start(self, decoder: PromptReader | Searcher, requests: Requests, num_beams: int) -> Callable[[], Ranking]:
        """Queue a batch on the device, and return a function that waits for its ranking."""
        exclude = requests.exclude
        allow = None if requests.allow is None else resolve_allow_lists(self.trie, requests.allow)
        if isinstance(decoder, AliasSearch):
            scores_BN, invalid = decoder.scores(self.shown(requests.histories), exclude, allow)
            return self._rank_items(scores_BN, invalid, exclude, allow, decoder.most_items, decoder.ranking)
        if isinstance(decoder, SegmentedDecoder):
            return self._read_off(*decoder.search(self.shown(requests.histories), exclude, allow), exclude, allow)
        prompts, none_invalid = self.encode(requests.histories), torch.zeros(len(requests.histories), dtype=torch.int64)
        if self._item_scorer is not None and self.rank_by == "items":
            scores_BN = self._item_scorer.log_probs(decoder.read(*prompts))
            return self._rank_items(scores_BN, none_invalid, exclude, allow, num_beams)
        if self._head is not None:
            scores_BN = self._head.log_probs(causal_lm(self.model), decoder.read(*prompts))
            if not self._knows_by_codes:
                return self._rank_items(scores_BN, none_invalid, exclude, allow, num_beams)
        leaf_filter = LeafFilter.of(self.trie, exclude, allow)
        if self._head is not None:
            leaves_BR, scores_BR = best_leaves(scores_BN, self.trie, leaf_filter, num_beams)
            return self._read_off(leaves_BR, scores_BR, torch.zeros_like(leaves_BR[:, 0]), exclude, allow)
        assert isinstance(decoder, SidDecoder), "only a head answers without a search"
        beams, states = decoder.search(*prompts, leaf_filter)
        # Read off the codes that were decoded, so that a leaf which does not own them would show in the metrics.
        is_item = (beams.codes == self.trie.codes_of(beams.leaves)).all(dim=2) & (beams.leaves >= 0)
        invalid = (beams.scores.isfinite() & ~is_item).sum(dim=1)
        if self._item_scorer is not None:
            scores_BN = self._item_scorer.mixture(states, beams)
            return self._rank_items(scores_BN, invalid, exclude, allow, num_beams)
        return self._read_off(beams.leaves, beams.scores, invalid, exclude, allow)

    def _read_off(
        self,
        leaves_BM: Tensor,
        scores_BM: Tensor,
        invalid: Tensor,
        exclude: Sequence[np.ndarray] | None,
        allow: Sequence[AllowList | None] | None,
    ) -> Callable[[], Ranking]:
        """Return a function that waits for the best leaves, and lists their items."""
        arrays = to_host([leaves_BM, scores_BM, invalid])

        def wait() -> Ranking:
            leaves, scores, num_invalid = arrays()
            check_scores(scores, leaves >= 0)  # a NaN may stand where no item is
            return leaf_ranking(self.trie, leaves, scores, num_invalid, exclude, allow, self._is_one_to_one)

        return wait

    def _rank_items(
        self,
        scores_BN: Tensor,
        invalid: Tensor,
        exclude: Sequence[np.ndarray] | None,
        allow: Sequence[AllowList | None] | None,
        width: int,
        ranking: Callable[[np.ndarray, np.ndarray, np.ndarray], Ranking] | None = None,
    ) -> Callable[[], Ranking]:
        """Queue the choice of the best permitted items, and return a function that waits for their ranking."""
        barred_BN = barred_items(scores_BN.shape[1], exclude, allow, scores_BN.device)
        arrays = to_host([*best_items(scores_BN, barred_BN, width), invalid.to(scores_BN.device)])

        def wait() -> Ranking:
            items, scores, num_invalid = arrays()
            if ranking is not None:
                return ranking(items, scores, num_invalid)
            return Ranking(items, np.broadcast_to(np.arange(items.shape[1]), items.shape), scores, num_invalid)

        return wait

    def shown(self, histories: Sequence[np.ndarray]) -> list[np.ndarray]:
        """List the latest items of each history, which the model is shown.

        Raises:
            ValueError: If a history is empty.
        """
        empty = [i for i, history in enumerate(histories) if len(history) == 0]
        if empty:
            raise ValueError(f"History {empty[0]} is empty; at least one item is needed to recommend from.")
        return [history[-self.sid_config.max_history :] for history in histories]

    def encode(self, histories: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Encode histories without the instruction, padded on the right.

        Returns:
            (B, T) int64 token ids and their (B, T) int64 attention mask.

        Raises:
            ValueError: If a history is empty.
        """
        ids, mask = self.encoder.pad_prompts((), self.shown(histories), PADDING)  # the search runs the prefix once
        return from_host(ids, self.model.device), from_host(mask, self.model.device)
