"""SidDecoder: tree beam search at the speed of the device, for one model and trie that answer many requests.

The whole search runs as `llmrec.decoding.tree_forward` reads a prompt: on a GPU as one CUDA graph of each size.
SegmentedDecoder searches after several ways of writing a history.

Shapes: B prompts, T prompt tokens, P prefix tokens, M beams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.beam_search import beam_widths, search_beams
from llmrec.decoding.search import Beams, SearchProblem, fuse_ranks
from llmrec.decoding.tree_forward import PromptReader
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.leaf_mask import LeafMask
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.runtime.device import from_host
from llmrec.sid.normalization import NormalizeOver
from llmrec.sid.vocabulary import SidVocabulary

PADDING = 0  # any token: it is masked


class SidDecoder(PromptReader):
    """Tree beam search for one model and trie; the answers are those of `tree_beam_search`.

    Args:
        model: Causal LM, or a PEFT model over one; its weights may change in place, its modules may not.
        trie: Legal SIDs, on the model's device.
        vocabulary: Tokens of their codes.
        num_beams: Beam width; or the width at each level, of which the last is the number of answers.
        normalize_over: Tokens that a code's probability is normalised over; see `llmrec.sid.normalization`.
        prefix_ids: (P,) int64 tokens that stand before every prompt; they are run once per batch.
        capture: Capture searches as CUDA graphs; by default on a GPU.
        compiled: Fuse the operations between matrix products by `torch.compile`. This compiles the model's layers in
            place, once for all batches; its first 20 seconds pay off if thousands of prompts follow.
        length_penalty: Power of its number of codes that the score of a complete SID is divided by.

    Raises:
        ValueError: If a width is not positive, the model cannot attend along a tree, or model or vocabulary lack codes
            of the trie.

    Examples:
        `model`, `tokenizer`, `table` and `sid_config` belong to a checkpoint; see `SidConfig.load`.

        >>> from llmrec import LeafFilter, SidDecoder, SidTrie
        >>> trie = SidTrie(table)
        >>> decoder = SidDecoder(model, trie, sid_config.vocabulary, num_beams=3)
        >>> beams = decoder(*sid_config.encode([[0, 1], [5]], table, tokenizer))
        >>> beams.scores.shape  # prompts, beams
        torch.Size([2, 3])

        The same decoder answers under a filter, here without the items of the history:

        >>> leaf_filter = LeafFilter(trie, exclude=[[0, 1]])
        >>> beams = decoder(*sid_config.encode([[0, 1]], table, tokenizer), leaf_filter)
        >>> items = [int(trie.items(leaf)[0]) for leaf in beams.leaves[0].tolist()]
        >>> len(items), {0, 1}.isdisjoint(items)
        (3, True)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        num_beams: int | Sequence[int],
        normalize_over: NormalizeOver = "vocabulary",
        prefix_ids: Tensor | None = None,
        capture: bool | None = None,
        compiled: bool = False,
        length_penalty: float = 0.0,
    ):
        self.problem = SearchProblem(
            causal_lm(model), trie, vocabulary, normalize_over, compiled=compiled, length_penalty=length_penalty
        )
        self.widths = beam_widths(num_beams, trie.num_levels)
        super().__init__(model, prefix_ids, capture, compiled)

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, leaf_filter: LeafFilter | None = None
    ) -> Beams:
        """Find the best SIDs of each prompt, and check their scores, which waits for the device.

        Args:
            input_ids: (B, T) int64 prompts, padded on either side, none of which ends inside a SID
                (`check_prompt_end`).
            attention_mask: (B, T) int64, 0 at padding; all ones when left out.
            leaf_filter: Leaves that each prompt may reach; all when left out.

        Returns:
            Beams of each prompt, best first: `codes` (B, M, L) int64, `scores` (B, M) float32, `leaves` (B, M) int64;
            -1, -inf and -1 in unfilled beams. M is the last width.

        Raises:
            ValueError: If prompt and SID do not fit the model's context, the filter is of another batch or trie, or a
                score is NaN.
        """
        beams, _ = self.search(input_ids, attention_mask, leaf_filter)
        beams.check()
        return beams

    @torch.no_grad()
    def search(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, leaf_filter: LeafFilter | None = None
    ) -> tuple[Beams, Tensor]:
        """Find the best SIDs of each prompt without waiting for the device, and return the states of the first codes.

        The scores are not checked: a model whose weights are not finite gives NaN. `Beams.check` refuses them.

        Args:
            input_ids: See a call.
            attention_mask: See a call.
            leaf_filter: See a call.

        Returns:
            Beams of each prompt, and (B, hidden) state of each prompt's last token.

        Raises:
            ValueError: As a call does, but for the scores.
        """
        self.problem.check_batch(input_ids, leaf_filter, self.prefix_ids)
        mask = None if leaf_filter is None else leaf_filter.mask
        codes, scores, leaves, states = self._run(self._search, input_ids, attention_mask, mask)
        return Beams(codes, scores, leaves), states

    def _search(self, mask: LeafMask | None, input_ids: Tensor, lengths: Tensor, *mask_tensors: Tensor) -> list[Tensor]:
        if mask is not None and mask_tensors:
            mask = mask.with_tensors(mask_tensors)
        prefix_ids = self._shared_prefix(input_ids)
        beams, states = search_beams(self.problem, input_ids, lengths, self.widths, mask, prefix_ids)
        return [beams.codes, beams.scores, beams.leaves, states]


class SegmentedDecoder:
    """Tree beam search after several ways of writing a history, whose rankings are merged (`fuse_ranks`).

    Args:
        decoder: Search that answers a prompt.
        encoder: Encoder that draws how it writes a history.
        ways: Number of ways; with one, scores stay log-probabilities.

    Source: ActionPiece (arXiv:2502.13581), section 3.4.
    """

    def __init__(self, decoder: SidDecoder, encoder: HistoryEncoder, ways: int):
        self.decoder, self.encoder, self.ways = decoder, encoder, ways

    def search(
        self,
        histories: Sequence[np.ndarray],
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[AllowList | None] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the best SIDs of each user. The ways depend on the history alone, and so does the answer.

        Args:
            histories: Item rows of each user, oldest first, none empty.
            exclude: Item rows barred for each user.
            allow: Items that each user is restricted to; None for any.

        Returns:
            (B, M) int64 leaves, best first, (B, M) float32 scores, and (B,) int64 number of beams that are no item;
            -1 and -inf where there are fewer leaves.
        """
        trie, device = self.decoder.problem.trie, self.decoder.model.device
        again = np.arange(len(histories)).repeat(self.ways).tolist()
        rngs = [np.random.default_rng((way, *history)) for history in histories for way in range(self.ways)]
        ids, mask = self.encoder.pad_prompts((), [histories[i] for i in again], PADDING, rngs)
        barred = None if exclude is None else [exclude[i] for i in again]
        leaf_filter = LeafFilter.of(trie, barred, None if allow is None else [allow[i] for i in again])
        beams, _ = self.decoder.search(from_host(ids, device), from_host(mask, device), leaf_filter)
        is_item = (beams.codes == trie.codes_of(beams.leaves)).all(dim=2) & (beams.leaves >= 0)
        invalid = (beams.scores.isfinite() & ~is_item).view(len(histories), -1).sum(dim=1)
        if self.ways == 1:
            return beams.leaves, beams.scores, invalid
        is_wrong = (is_item & ~beams.scores.isfinite()).view(len(histories), -1).any(dim=1, keepdim=True)
        leaves, scores = fuse_ranks(beams.leaves.unflatten(0, (-1, self.ways)), trie.num_leaves)
        return leaves, scores.masked_fill(is_wrong, torch.nan), invalid  # ranks would hide that a score is NaN
