"""SidDecoder: tree beam search at the speed of the device, for one model and trie that answer many requests.

On a GPU the whole search becomes one CUDA graph for each size of batch and prompt that comes up repeatedly. Sizes are
rounded up so that there are few of them: prompts are repeated and padded, which changes no answer. `compiled` joins the
projections that read the same input (`llmrec.model.fused_projections`) and fuses the operations between the matrix
products of a layer.

Shapes: B prompts, T prompt tokens, P prefix tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from llmrec.decoding.beam_search import beam_widths, search_beams
from llmrec.decoding.search import Beams, SearchProblem
from llmrec.decoding.tree_forward import TreeForward, pad_right
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.leaf_mask import LeafMask
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm, compile_layers
from llmrec.model.code_scores import NormalizeOver
from llmrec.model.fused_projections import join_projections
from llmrec.runtime.cuda_graphs import CudaGraphs
from llmrec.sid.vocabulary import SidVocabulary

LEAST_STEP, ROWS_STEP = 8, 16


class SidDecoder:
    """Tree beam search for one model and trie; the answers are those of `tree_beam_search`.

    Args:
        model: Causal LM, or a PEFT model over one; its weights may change in place, its modules may not.
        trie: Legal SIDs, on the model's device.
        vocabulary: Tokens of their codes.
        num_beams: Beam width; or the width at each level, of which the last is the number of answers.
        normalize_over: Tokens that a code's probability is normalised over; see `llmrec.model.code_scores`.
        prefix_ids: (P,) int64 tokens that stand before every prompt; they are run once per batch.
        capture: Capture searches as CUDA graphs; by default on a GPU.
        compiled: Fuse the operations between matrix products by `torch.compile`. This compiles the model's layers in
            place, once for all batches; its first 20 seconds pay off if thousands of prompts follow.

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
    ):
        self.problem = SearchProblem(causal_lm(model), trie, vocabulary, normalize_over, compiled=compiled)
        if compiled:
            join_projections(self.problem.model)
            compile_layers(self.problem.model)
        self.widths = beam_widths(num_beams, trie.num_levels)
        self.prefix_ids = prefix_ids
        capture = trie.device.type == "cuda" if capture is None else capture
        self._graphs = CudaGraphs() if capture else None

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, leaf_filter: LeafFilter | None = None
    ) -> Beams:
        """Find the best SIDs of each prompt, without waiting for the device.

        Args:
            input_ids: (B, T) int64 prompts, padded on either side, none of which ends inside a SID
                (`check_prompt_end`).
            attention_mask: (B, T) int64, 0 at padding; all ones when left out.
            leaf_filter: Leaves that each prompt may reach; all when left out.

        Returns:
            Beams of each prompt, best first: `codes` (B, M, L) int64, `scores` (B, M) float32, `leaves` (B, M) int64;
            -1, -inf and -1 in unfilled beams. M is the last width.

        Raises:
            ValueError: If prompt and SID do not fit the model's context, or the filter is of another batch or trie.
        """
        return self.search(input_ids, attention_mask, leaf_filter)[0]

    @torch.no_grad()
    def search(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, leaf_filter: LeafFilter | None = None
    ) -> tuple[Beams, Tensor]:
        """Find the best SIDs of each prompt as a call does, and return the states that their first codes come from.

        Args:
            input_ids: See a call.
            attention_mask: See a call.
            leaf_filter: See a call.

        Returns:
            Beams of each prompt, and (B, hidden) state of each prompt's last token.

        Raises:
            ValueError: As a call does.
        """
        self.problem.check_batch(input_ids, leaf_filter, self.prefix_ids)
        mask = None if leaf_filter is None else leaf_filter.mask
        codes, scores, leaves, states = self._run(self._search, input_ids, attention_mask, mask)
        return Beams(codes, scores, leaves), states

    @torch.no_grad()
    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Run the prompts without a search.

        Args:
            input_ids: See a call.
            attention_mask: See a call.

        Returns:
            (B, hidden) state of each prompt's last token.

        Raises:
            ValueError: If a prompt does not fit the model's context.
        """
        self.problem.check_batch(input_ids, None, self.prefix_ids)
        return self._run(self._read, input_ids, attention_mask, None)[0]

    def _run(
        self,
        function: Callable[..., list[Tensor]],
        input_ids: Tensor,
        attention_mask: Tensor | None,
        mask: LeafMask | None,
    ) -> list[Tensor]:
        """Call a function of a mask, ids padded on the right, and lengths, as a CUDA graph if there are any."""
        ids, lengths = pad_right(input_ids, attention_mask)
        if len(ids) == 1 and self.prefix_ids is not None:  # nothing to share: one pass is faster than two
            ids, lengths = torch.cat([self.prefix_ids.unsqueeze(0), ids], dim=1), lengths + len(self.prefix_ids)
        if self._graphs is None:
            return function(mask, ids, lengths)
        num_rows = len(ids)
        rows = torch.arange(_round_up(num_rows, ROWS_STEP), device=ids.device).clamp(max=num_rows - 1)
        inputs = [pad(ids, (0, _padded_length(ids.shape[1]) - ids.shape[1]))[rows], lengths[rows]]
        mask = None if mask is None else mask.rounded(rows)
        mask_tensors = {} if mask is None else mask.tensors()
        outputs = self._graphs.run(
            functools.partial(function, mask),
            [*inputs, *mask_tensors.values()],
            (function.__name__, *mask_tensors),
        )
        return [tensor[:num_rows] for tensor in outputs]

    def _search(self, mask: LeafMask | None, input_ids: Tensor, lengths: Tensor, *mask_tensors: Tensor) -> list[Tensor]:
        if mask is not None and mask_tensors:
            mask = mask.with_tensors(mask_tensors)
        prefix_ids = self._shared_prefix(input_ids)
        beams, states = search_beams(self.problem, input_ids, lengths, self.widths, mask, prefix_ids)
        return [beams.codes, beams.scores, beams.leaves, states]

    def _read(self, mask: None, input_ids: Tensor, lengths: Tensor) -> list[Tensor]:
        forward = TreeForward(self.problem.model, 0, self._shared_prefix(input_ids))
        return [forward.prefill(input_ids, lengths).squeeze(1)]

    def _shared_prefix(self, input_ids: Tensor) -> Tensor | None:
        return self.prefix_ids if len(input_ids) > 1 else None


def _padded_length(length: int) -> int:
    """Round a length up to a multiple of an eighth of the power of two below, and of LEAST_STEP.

    The steps are coarse on purpose: the batches of an evaluation fall into few lengths, and each is captured once.
    """
    step = max(LEAST_STEP, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def _round_up(count: int, step: int) -> int:
    """Round a count below `step` up to a power of two, and one above it to a multiple of `step`."""
    return 1 << (count - 1).bit_length() if count < step else -(-count // step) * step
