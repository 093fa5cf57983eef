"""Forward passes: the states of prompts, each read once, then one block of tokens per level of a search.

`PromptReader` reads prompts at the speed of the device. On a GPU the whole pass becomes one CUDA graph for each size of
batch and prompt that comes up repeatedly. Sizes are rounded up so that there are few of them: prompts are repeated and
padded, which changes no answer. `compiled` joins the projections that read the same input
(`llmrec.model.linear_layers`) and fuses the operations between the matrix products of a layer. On a CPU, products
in float32 are oneDNN's.

Shapes: B prompts, T prompt tokens, P prefix tokens, M beams, S columns written so far.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from llmrec.decoding.tree_attention import TreeCache, check_attention
from llmrec.decoding.trie.leaf_mask import MIN_WIDTH, LeafMask
from llmrec.model.backbone import causal_lm, check_context, compile_layers, run_backbone
from llmrec.model.linear_layers import join_projections, onednn_products, use_onednn
from llmrec.runtime.cuda_graphs import CudaGraphs

LEAST_STEP, ROWS_STEP = 8, 16


@dataclass(frozen=True)
class Rounding:
    """Sizes that batches are rounded up to; beyond the largest of a list, and without one, the steps are fine.

    An evaluation has batches of one size, whose lengths the fine steps follow closely. A service meets all sizes, and
    captures a few coarse ones before its first request.

    Attributes:
        rows: Numbers of prompts, ascending.
        lengths: Numbers of tokens of the longest prompt, ascending.
        barred: Smallest number of columns for the barred leaves of a prompt.
    """

    rows: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    barred: int = MIN_WIDTH

    def num_rows(self, count: int) -> int:
        """Round up a number of prompts."""
        return next((each for each in self.rows if each >= count), _round_up(count, ROWS_STEP))

    def length(self, length: int) -> int:
        """Round up a number of tokens."""
        return next((each for each in self.lengths if each >= length), padded_length(length))


def pad_right(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move the padding of prompts to the right.

    Returns:
        (B, T) ids and (B,) lengths.
    """
    if attention_mask is None:
        return input_ids, torch.full((len(input_ids),), input_ids.shape[1], device=input_ids.device)
    order = attention_mask.argsort(dim=1, descending=True, stable=True)
    return input_ids.gather(1, order), attention_mask.sum(dim=1)


class TreeForward:
    """Hidden states of prompts, then of the beams that grow from them.

    Args:
        model: Causal LM.
        num_beam_tokens: Number of tokens per prompt that the levels will add.
        prefix_ids: (P,) tokens that stand before every prompt; they are run once for all prompts.
    """

    def __init__(self, model: PreTrainedModel, num_beam_tokens: int, prefix_ids: Tensor | None = None):
        self.model, self.num_beam_tokens, self.prefix_ids = model, num_beam_tokens, prefix_ids
        self.offset = 0 if prefix_ids is None else len(prefix_ids)

    def prefill(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Run the prompts.

        Args:
            input_ids: (B, T), padded on the right.
            lengths: (B,) number of tokens of each prompt, at least 1.

        Returns:
            (B, 1, hidden) state of each prompt's last token.
        """
        prefix = None
        if self.prefix_ids is not None:
            prefix = TreeCache(self.offset)
            self._run(prefix, self.prefix_ids.unsqueeze(0), torch.arange(self.offset, device=input_ids.device)[None])
        num_tokens = input_ids.shape[1]
        self.cache = TreeCache(self.offset + num_tokens + self.num_beam_tokens, prefix)
        columns = torch.arange(self.offset + num_tokens, device=input_ids.device)
        self.positions = (self.offset + lengths).unsqueeze(1)  # (B, 1) of the next token
        # Padding takes the last token's position: its own may lie beyond a table of learned positions.
        hidden = self._run(self.cache, input_ids, columns[self.offset :].minimum(self.positions - 1))
        self.visible = (columns < self.positions).unsqueeze(1)  # (B, 1, S)
        return hidden.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[2]))

    def advance(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Run one more token of every beam.

        Args:
            tokens: (B, M) token of each beam.
            parents: (B, M) place of the beam's parent in the previous block; 0 after the prompt.

        Returns:
            (B, M, hidden) states.
        """
        inherited = self.visible.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.visible.shape[2]))
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self.visible = torch.cat([inherited, itself], dim=2)
        hidden = self._run(self.cache, tokens, self.positions.expand_as(tokens), self.visible)
        self.positions = self.positions + 1
        return hidden

    def _run(self, cache: TreeCache, tokens: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
        positions = positions.contiguous()  # the compiler makes code of its own for an expanded one
        with cache.block(self.model, tokens.shape[1], visible), onednn_products():
            output = run_backbone(self.model, input_ids=tokens, position_ids=positions, use_cache=False)
        return output.last_hidden_state


class PromptReader:
    """Forward pass of prompts through one model.

    Args:
        model: Causal LM, or a PEFT model over one; its weights may change in place, its modules may not.
        prefix_ids: (P,) int64 tokens that stand before every prompt; they are run once per batch.
        capture: Capture passes as CUDA graphs; by default on a GPU.
        compiled: Fuse the operations between matrix products by `torch.compile`. This compiles the model's layers in
            place, once for all batches; its first 20 seconds pay off if thousands of prompts follow.

    Attributes:
        rounding: Sizes that captured passes are rounded up to.

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
        if self.model.device.type == "cpu":
            use_onednn(self.model)
        elif compiled:
            join_projections(self.model)
        if compiled:
            compile_layers(self.model)
        capture = self.model.device.type == "cuda" if capture is None else capture
        self._graphs = CudaGraphs() if capture else None
        self.rounding = Rounding()

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
        rows = torch.arange(self.rounding.num_rows(num_rows), device=ids.device).clamp(max=num_rows - 1)
        inputs = [pad(ids, (0, self.rounding.length(ids.shape[1]) - ids.shape[1]))[rows], lengths[rows]]
        mask = None if mask is None else mask.rounded(rows, self.rounding.barred)
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


def padded_length(length: int) -> int:
    """Round a length up to a multiple of an eighth of the power of two below, and of LEAST_STEP.

    The steps are coarse on purpose: the batches of an evaluation fall into few lengths, and each is captured once.
    """
    step = max(LEAST_STEP, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def _round_up(count: int, step: int) -> int:
    """Round a count below `step` up to a power of two, and one above it to a multiple of `step`."""
    return 1 << (count - 1).bit_length() if count < step else -(-count // step) * step
