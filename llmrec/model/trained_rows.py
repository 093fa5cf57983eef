"""Token rows that train alone, read without the vocabulary around them.

PEFT's trainable token indices keep such rows apart from the frozen matrix, and save, load and merge them. But at every
look-up PEFT copies the whole matrix to put the rows in, differentiates by all of it, and copies the list of token ids
to the device, which no CUDA graph can hold. SID rows lie side by side, so here they are one small matrix next to the
frozen one; PEFT's module keeps the weights and all its other duties. The gain in speed alone is not recorded; captured
training steps need it (`llmrec.training.sft.captured_step`).

PEFT's wrappers are recognised by their attributes, as in `llmrec.model.backbone`. tests/model/test_trained_rows.py
compares values and gradients with PEFT's own, and fails if a version of PEFT changes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


class TokenAdapter(Protocol):
    """PEFT's TrainableTokensLayer, as far as it is used here."""

    merged: bool
    disable_adapters: bool
    active_adapters: list[str]
    token_indices: dict[str, list[int]]
    trainable_tokens_delta: Mapping[str, Tensor]
    base_layer: nn.Module
    forward: Callable[[Tensor], Tensor]


def token_adapter(module: nn.Module) -> TokenAdapter | None:
    """Return PEFT's adapter of an embedding or output matrix of which some rows train, or None."""
    return getattr(module, "token_adapter", None)


def trained_block(module: nn.Module) -> tuple[slice, Tensor] | None:
    """Find the rows that train within an embedding or output matrix.

    Returns:
        Their token ids, and the (rows, hidden) rows. None if no rows train alone, if they do not lie side by side, or
        if PEFT has merged or disabled them.
    """
    adapter = token_adapter(module)
    if adapter is None or adapter.merged or adapter.disable_adapters or len(adapter.active_adapters) != 1:
        return None
    name = adapter.active_adapters[0]
    token_ids = adapter.token_indices[name]
    if token_ids[-1] - token_ids[0] + 1 != len(token_ids):
        return None
    return slice(token_ids[0], token_ids[-1] + 1), adapter.trainable_tokens_delta[name]


def matrix_of(module: nn.Module) -> Tensor:
    """Weight of an embedding or output matrix, (vocabulary, hidden), as the module shows it."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight matrix.")
    return weight


def with_trained_rows(module: nn.Module, rows: slice | Tensor) -> Tensor:
    """(rows, hidden) of an embedding or output matrix with its trained rows; a copy unless all of them are trained."""
    block, adapter = trained_block(module), token_adapter(module)
    if block is None or adapter is None:
        return matrix_of(module)[rows]
    frozen = matrix_of(adapter.base_layer)
    if isinstance(rows, Tensor):
        return _with_own(frozen[rows], rows, *block)
    (first, last), (start, stop) = (block[0].start, block[0].stop), rows.indices(len(frozen))[:2]
    trained = block[1][max(start - first, 0) : max(stop - first, 0)].to(frozen.dtype)
    if first <= start and stop <= last:
        return trained
    return torch.cat([frozen[start : min(stop, first)], trained, frozen[max(start, last) : stop]])


def look_up_apart(wrapper: nn.Module) -> None:
    """Let PEFT's wrapper of an embedding look trained rows up in their own matrix, in place; the result is the same."""
    adapter = token_adapter(wrapper)
    if adapter is None:
        raise ValueError(f"{type(wrapper).__name__} has no rows that train alone; add them by trainable_token_indices.")
    adapter.forward = functools.partial(_look_up, wrapper, adapter, adapter.forward)


def _look_up(wrapper: nn.Module, adapter: TokenAdapter, original: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """(…) token ids -> (…, hidden)."""
    block = trained_block(wrapper)
    if block is None:
        return original(ids)
    frozen = adapter.base_layer
    vectors = frozen(ids)
    return _with_own(vectors, ids, *block, scale=getattr(frozen, "embed_scale", None))  # Gemma's


def _with_own(vectors: Tensor, ids: Tensor, rows: slice, trained_RD: Tensor, scale: Tensor | None = None) -> Tensor:
    """Put the trained rows into the (…, hidden) vectors of (…) token ids."""
    own = embedding((ids - rows.start).clamp(0, len(trained_RD) - 1), trained_RD).to(vectors.dtype)
    if scale is not None:
        own = own * scale.to(own.dtype)
    is_trained = (ids >= rows.start) & (ids < rows.stop)
    return torch.where(is_trained.unsqueeze(-1), own, vectors)
