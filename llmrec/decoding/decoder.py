"""SidDecoder: tree beam search at the speed of the device, for one model and trie that answer many requests.

On a GPU the whole search becomes one CUDA graph for each size of batch and prompt that comes up repeatedly. Sizes are
rounded up, so that there are few: rows are repeated and prompts padded, which changes no answer. `compiled` joins the
projections of the same input (`llmrec.model.fused_projections`) and fuses what lies between a layer's matrix products.

Shapes: B rows, T prompt tokens, P prefix tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from llmrec.decoding.beam_search import beam_widths, search_beams
from llmrec.decoding.search import Beams, SearchProblem
from llmrec.decoding.tree_forward import pad_right
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm, compile_layers
from llmrec.model.code_scores import NormalizeOver
from llmrec.model.fused_projections import join_projections
from llmrec.runtime.cuda_graphs import CudaGraphs
from llmrec.sid.vocabulary import SidVocabulary

LEAST_STEP, ROWS_STEP = 8, 16


class SidDecoder:
    """The best SIDs of each prompt, as `tree_beam_search` finds them.

    Args:
        model: Causal LM, or a PEFT model over one; its weights may change in place, its modules may not.
        trie: Legal SIDs.
        vocabulary: Their tokens.
        num_beams: Beam width; or the width at each level, of which the last is the number of answers.
        normalize_over: What a code's probability is normalised over; see `llmrec.model.code_scores`.
        prefix_ids: (P,) tokens that stand before every prompt; they are run once per batch.
        capture: Whether searches are captured as CUDA graphs; on a GPU when left out.
        compiled: Whether `torch.compile` fuses what lies between matrix products. It compiles the model's layers in
            place, once for all batches; worth its first 20 seconds where thousands of prompts follow.

    Raises:
        ValueError: If a width is not positive, the model cannot attend along a tree, or model or vocabulary lack codes
            of the trie.
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
        self.space = SearchProblem(causal_lm(model), trie, vocabulary, normalize_over, compiled=compiled)
        if compiled:
            join_projections(self.space.model)
            compile_layers(self.space.model)
        self.widths = beam_widths(num_beams, trie.num_levels)
        self.prefix_ids = prefix_ids
        capture = trie.device.type == "cuda" if capture is None else capture
        self._graphs = CudaGraphs() if capture else None

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, leaf_filter: LeafFilter | None = None
    ) -> Beams:
        """The best SIDs of each prompt, without waiting for the device.

        Args:
            input_ids: (B, T) prompts, padded on either side, none of which ends inside a SID (`check_prompt_end`).
            attention_mask: (B, T), 0 at padding; all ones when left out.
            leaf_filter: Leaves that each row may reach.

        Raises:
            ValueError: If prompt and SID do not fit the model's context, or the filter is of another batch or trie.
        """
        self.space.check_batch(input_ids, leaf_filter, self.prefix_ids)
        ids, lengths = pad_right(input_ids, attention_mask)
        if len(ids) == 1 and self.prefix_ids is not None:  # nothing to share: one pass is faster than two
            ids, lengths = torch.cat([self.prefix_ids.unsqueeze(0), ids], dim=1), lengths + len(self.prefix_ids)
        if self._graphs is None:
            return search_beams(self.space, ids, lengths, self.widths, leaf_filter, self._shared_prefix(ids))
        num_rows = len(ids)
        rows = torch.arange(_round_up(num_rows, ROWS_STEP), device=ids.device).clamp(max=num_rows - 1)
        inputs = [pad(ids, (0, _padded_length(ids.shape[1]) - ids.shape[1]))[rows], lengths[rows]]
        if leaf_filter is not None:
            leaf_filter = leaf_filter.rounded(rows)
            inputs += leaf_filter.tensors()
        kind = None if leaf_filter is None else leaf_filter.kind
        found = self._graphs.run(functools.partial(self._search, leaf_filter), inputs, kind)
        return Beams(*(tensor[:num_rows] for tensor in found))

    def _search(
        self, leaf_filter: LeafFilter | None, input_ids: Tensor, lengths: Tensor, *filter_tensors: Tensor
    ) -> list[Tensor]:
        if leaf_filter is not None:
            leaf_filter = leaf_filter.with_tensors(filter_tensors)
        prefix_ids = self._shared_prefix(input_ids)
        beams = search_beams(self.space, input_ids, lengths, self.widths, leaf_filter, prefix_ids)
        return [beams.codes, beams.scores, beams.leaves]

    def _shared_prefix(self, input_ids: Tensor) -> Tensor | None:
        return self.prefix_ids if len(input_ids) > 1 else None


def _padded_length(length: int) -> int:
    """The next multiple of an eighth of the power of two below, and of LEAST_STEP.

    Coarse on purpose: the batches of an evaluation fall into few lengths, of which each is captured once.
    """
    step = max(LEAST_STEP, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def _round_up(count: int, step: int) -> int:
    """The next power of two below `step`, the next multiple of it above."""
    return 1 << (count - 1).bit_length() if count < step else -(-count // step) * step
