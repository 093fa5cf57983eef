"""Token rows that train alone, read without the vocabulary around them.

PEFT's trainable token indices keep such rows apart from the frozen matrix, save, load and merge them. But at every look
up it copies the whole matrix to put the rows in, differentiates by all of it, and copies the list of token ids to the
device, which no CUDA graph can hold. SID rows lie side by side, so that here they are one small matrix beside the
frozen one; PEFT's module keeps the weights and all its other duties.

PEFT's wrappers are told by what they offer, as in `llmrec.model.backbone`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


def trained_block(module: nn.Module) -> tuple[slice, Tensor] | None:
    """Token ids of the rows that train within an embedding or output matrix, and the (rows, hidden) rows.

    Returns:
        None where no rows train alone, they do not lie side by side, or PEFT has merged or disabled them.
    """
    adapter = getattr(module, "token_adapter", None)
    if adapter is None or adapter.merged or adapter.disable_adapters or len(adapter.active_adapters) != 1:
        return None
    name = adapter.active_adapters[0]
    token_ids = adapter.token_indices[name]
    if token_ids[-1] - token_ids[0] + 1 != len(token_ids):
        return None
    return slice(token_ids[0], token_ids[-1] + 1), adapter.trainable_tokens_delta[name]


def with_trained_rows(module: nn.Module, rows: slice) -> Tensor:
    """(rows, hidden) of an embedding or output matrix, trained ones included; a copy where not all of them are."""
    block = trained_block(module)
    if block is None:
        return module.weight[rows]
    frozen = module.token_adapter.base_layer.weight
    (first, last), (start, stop) = (block[0].start, block[0].stop), rows.indices(len(frozen))[:2]
    trained = block[1][max(start - first, 0) : max(stop - first, 0)].to(frozen.dtype)
    if first <= start and stop <= last:
        return trained
    return torch.cat([frozen[start : min(stop, first)], trained, frozen[max(start, last) : stop]])


def look_up_apart(wrapper: nn.Module) -> None:
    """Let PEFT's wrapper of an embedding look trained rows up in their own matrix, in place; the result is the same."""
    adapter = wrapper.token_adapter
    adapter.forward = functools.partial(_look_up, wrapper, adapter.forward)


def _look_up(wrapper: nn.Module, original: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """(…) token ids -> (…, hidden)."""
    block = trained_block(wrapper)
    if block is None:
        return original(ids)
    rows, trained_RD = block
    frozen = wrapper.token_adapter.base_layer
    vectors = frozen(ids)
    own = embedding((ids - rows.start).clamp(0, len(trained_RD) - 1), trained_RD).to(vectors.dtype)
    scale = getattr(frozen, "embed_scale", None)  # Gemma's
    if scale is not None:
        own = own * scale.to(own.dtype)
    is_trained = (ids >= rows.start) & (ids < rows.stop)
    return torch.where(is_trained.unsqueeze(-1), own, vectors)
