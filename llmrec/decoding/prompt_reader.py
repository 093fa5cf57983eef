"""PromptReader: the states of prompts' last tokens, at the speed of the device; many requests to one model.

On a GPU the whole pass becomes one CUDA graph for each size of batch and prompt that comes up repeatedly. Sizes are
rounded up so that there are few of them: prompts are repeated and padded, which changes no answer. `compiled` joins the
projections that read the same input (`llmrec.model.fused_projections`) and fuses the operations between the matrix
products of a layer.

Shapes: B prompts, T prompt tokens, P prefix tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from llmrec.decoding.tree_attention import check_attention
from llmrec.decoding.tree_forward import TreeForward, pad_right
from llmrec.decoding.trie.leaf_mask import LeafMask
from llmrec.model.backbone import causal_lm, check_context, compile_layers
from llmrec.model.fused_projections import join_projections
from llmrec.runtime.cuda_graphs import CudaGraphs

LEAST_STEP, ROWS_STEP = 8, 16


class PromptReader:
    """Forward pass of prompts through one model.

    Args:
        model: Causal LM, or a PEFT model over one; its weights may change in place, its modules may not.
        prefix_ids: (P,) int64 tokens that stand before every prompt; they are run once per batch.
        capture: Capture passes as CUDA graphs; by default on a GPU.
        compiled: Fuse the operations between matrix products by `torch.compile`. This compiles the model's layers in
            place, once for all batches; its first 20 seconds pay off if thousands of prompts follow.

    Raises:
        ValueError: If the model's attention cannot be replaced.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prefix_ids: Tensor | None = None,
        capture: bool | None = None,
        compiled: bool = False,
    ):
        self.model, self.prefix_ids = causal_lm(model), prefix_ids
        check_attention(self.model)
        if compiled:
            join_projections(self.model)
            compile_layers(self.model)
        capture = self.model.device.type == "cuda" if capture is None else capture
        self._graphs = CudaGraphs() if capture else None

    @torch.no_grad()
    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Run the prompts without a search.

        Args:
            input_ids: (B, T) int64 prompts, padded on either side.
            attention_mask: (B, T) int64, 0 at padding; all ones when left out.

        Returns:
            (B, hidden) state of each prompt's last token.

        Raises:
            ValueError: If a prompt does not fit the model's context.
        """
        offset = 0 if self.prefix_ids is None else len(self.prefix_ids)
        check_context(self.model, offset + input_ids.shape[1])
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

    def _read(self, mask: None, input_ids: Tensor, lengths: Tensor) -> list[Tensor]:
        forward = TreeForward(self.model, 0, self._shared_prefix(input_ids))
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
