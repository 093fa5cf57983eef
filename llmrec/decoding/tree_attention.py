"""Attention of beams over their shared prompt and their own paths, inside any Hugging Face decoder.

It replaces the model's attention function while a search runs. The keys of a layer lie in one buffer: first the
prompt, then one block per level with the codes of all beams. A block is written once and never moved, because the mask
encodes the parents of a beam: a beam sees its prompt, its ancestors and itself.

Prompts are padded on the right, where causal attention never looks, so prefill needs no mask.

Shapes: B prompts, H query heads, G key heads, T tokens of a block, S columns of a buffer, P prefix tokens, D head dim.

Source: tree attention as in SpecInfer (arXiv:2305.09781); the hook is transformers' `AttentionInterface`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "llmrec_tree"
ALIGNMENT = 16  # columns; CUDA's masked kernel copies a mask whose rows start elsewhere
LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}  # that mix tokens by attention alone

CACHED = "use `generate()` with SidLogitsProcessor"
# Where transformers' own cache gives other beams than no cache (RecurrentGemma, MiniMax), or padding acts on a state.
UNCACHED = "use `generate(use_cache=False)` with SidLogitsProcessor, for prompts of one length"


class NotSearchable(ValueError):
    """A model whose beams cannot share a prompt; the message says what to use instead."""


class AttentionLayer(Protocol):
    """Attention module of a decoder layer, as transformers hands it to an attention function."""

    layer_idx: int


class TreeCache:
    """Keys and values of one search.

    Args:
        num_columns: Number of tokens per prompt that will be written, those of `prefix` included.
        prefix: Cache of one prompt, whose tokens every prompt begins with.
    """

    def __init__(self, num_columns: int, prefix: TreeCache | None = None):
        self.num_columns, self.prefix = num_columns, prefix
        self.filled: int = 0 if prefix is None else prefix.filled
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.visible: Tensor | None = None  # of the current block; None while prompts are read
        self._mask: Tensor | None = None
        self._written: set[int] = set()  # layers that the current block has passed

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append a block to the keys and values of a layer.

        Args:
            layer: Index of the layer.
            keys: (B, G, T, D).
            values: (B, G, T, D of the values).

        Returns:
            (B, G, S, D) keys and values, block included.

        Raises:
            NotSearchable: If the layer has written this block before; the keys of the first time would be lost.
        """
        if layer in self._written:
            raise NotSearchable(
                f"Layer {layer} attends more than once per token, but tree beam search keeps one set of keys per "
                f"layer; {CACHED}."
            )
        self._written.add(layer)
        if layer not in self.layers:
            self.layers[layer] = (self._buffer(layer, 0, keys), self._buffer(layer, 1, values))
        end = self.filled + keys.shape[2]
        for buffer, block in zip(self.layers[layer], (keys, values), strict=True):
            _words(buffer[:, self.filled : end]).copy_(_words(block.transpose(1, 2)))
        all_keys, all_values = self.layers[layer]
        return all_keys[:, :end].transpose(1, 2), all_values[:, :end].transpose(1, 2)

    def _buffer(self, layer: int, which: int, block: Tensor) -> Tensor:
        """(B, columns, G, D), the layout of a projection's output, in which a block is one run of memory per row."""
        batch_size, num_groups, _, dim = block.shape
        buffer = block.new_empty(batch_size, self.num_columns, num_groups, dim)
        if self.prefix is not None:
            buffer[:, : self.filled] = self.prefix.layers[layer][which][:, : self.filled]
        return buffer

    def mask(self, query: Tensor) -> Tensor:
        """(B, 1, T, S) additive mask of the current block, the same in every layer."""
        if self._mask is None:
            visible = self.visible
            if visible is None:
                shape = (1, query.shape[2], self.filled + query.shape[2])
                visible = torch.ones(shape, dtype=torch.bool, device=query.device).tril(self.filled)
            self._mask = additive_mask(visible, query.dtype)
        return self._mask

    @contextmanager
    def block(self, model: PreTrainedModel, num_tokens: int, visible: Tensor | None = None) -> Iterator[None]:
        """Let the model's next forward pass read and write this cache.

        Args:
            model: Causal LM.
            num_tokens: Number of tokens per prompt of the pass.
            visible: (B, T, S) bool, columns that each token sees; those up to its own when left out.
        """
        self.visible, self._mask, self._written = visible, None, set()
        with _one_at_a_time:
            before = model.config._attn_implementation
            model.config._attn_implementation = NAME
            token = _active.set(self)
            try:
                yield
            finally:
                _active.reset(token)
                model.config._attn_implementation = before
        self.filled += num_tokens


_active: ContextVar[TreeCache] = ContextVar("llmrec_tree_cache")
_one_at_a_time = threading.Lock()  # a server's threads share the model's config


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn (B, T, S) bool into a (B, 1, T, S) mask of 0 and -inf whose rows start at aligned addresses."""
    batch_size, num_tokens, num_columns = visible.shape
    aligned = -(-num_columns // ALIGNMENT) * ALIGNMENT
    mask = torch.zeros(batch_size, 1, num_tokens, aligned, dtype=dtype, device=visible.device)
    mask = mask[..., :num_columns]
    return mask.masked_fill_(~visible.unsqueeze(1), -torch.inf)


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model whose attention cannot be replaced, or whose layers do not see all keys.

    Raises:
        NotSearchable: If the model takes no attention function, has recurrent, convolutional or sparse layers, or
            shares keys between layers.
    """
    config = model.config.get_text_config()
    if model._is_stateful or not LAYER_TYPES.issuperset(getattr(config, "layer_types", None) or ()):
        raise NotSearchable(
            f"{type(model).__name__} has recurrent, convolutional or sparse layers, through which beams cannot share a "
            f"prompt; {UNCACHED}."
        )
    if not model._supports_attention_backend or getattr(config, "num_kv_shared_layers", None):
        raise NotSearchable(
            f"{type(model).__name__} does not let its attention be replaced layer by layer; {UNCACHED}."
        )


@torch.compiler.disable
def attend(
    module: AttentionLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend as `AttentionInterface` asks for it; (B, H, T, D) query -> (B, T, H, D).

    Raises:
        NotSearchable: If the model's attention has an ingredient that this one does not know.
    """
    unknown = [name for name, value in kwargs.items() if isinstance(value, Tensor) and name != "position_ids"]
    if unknown:
        raise NotSearchable(
            f"The attention of {type(module).__name__} reads {', '.join(unknown)}, which tree beam search does not; "
            f"{CACHED}."
        )
    # Under autocast, rotation leaves float32 behind. SDPA casts it, but the causal mask compares types before that.
    query, key = query.to(value.dtype), key.to(value.dtype)
    cache = _active.get()
    keys, values = cache.write(module.layer_idx, key, value)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is not None:
        out = _softcapped(query, keys, values, cache.mask(query), scaling, softcap)
    else:
        mask = _causal(query, keys) if cache.visible is None else cache.mask(query)
        grouped = query.shape[1] != keys.shape[1]
        out = scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
    return out.transpose(1, 2), None


def _causal(query: Tensor, keys: Tensor) -> Tensor | None:
    """Mask under which a token sees the columns before its block and the block up to itself; None without columns."""
    return None if query.shape[2] == keys.shape[2] else causal_lower_right(query.shape[2], keys.shape[2])


def _softcapped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float, softcap: float) -> Tensor:
    """Attend with Gemma 2's bounded scores, for which there is no fused kernel; (B, H, T, D)."""
    keys, values = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (keys, values))
    scores = softcap * torch.tanh(query @ keys.transpose(2, 3) * (scaling / softcap)) + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype) @ values


def _words(tensor: Tensor) -> Tensor:
    """View memory in words of 8 bytes if its rows divide so; a strided copy takes its time per word."""
    return tensor.view(torch.int64) if tensor.shape[-1] * tensor.element_size() % 8 == 0 else tensor


AttentionInterface.register(NAME, attend)
