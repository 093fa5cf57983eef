"""Gradient caching: the gradient of a batch as large as its negatives need, in the memory of a part of it.

GradCache encodes the batch part by part without keeping activations, takes the gradient of the loss with respect to the
outputs, and encodes part by part once more to pass that gradient on. Here autograd does all three: each part is an
activation checkpoint, which keeps its inputs only and is computed again when the backward pass reaches it. The engine
finishes the newest part before it begins the one before it, so that the activations of one part are alive at a time.
The price is the same as GradCache's: the encoding is computed twice.

Nothing random may be drawn inside: noise is an input, drawn for the whole batch, so that the parts see the noise of the
whole.

Source: GradCache (arXiv:2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def in_parts(function: Callable[..., Result], part_size: int | None, *inputs: Tensor) -> list[Result]:
    """Apply a function to each part of a batch; inner tensors of a part are computed again in the backward pass.

    Args:
        function: Takes tensors like `inputs`, cut to the rows of a part. It may read other tensors, and gradients reach
            these, too.
        part_size: Rows of a part; None for one part, whose inner tensors are kept.
        inputs: (B, ...) each, cut along the rows.

    Returns:
        The results of the parts, in order.

    Source: GradCache (arXiv:2101.06983, section 3.2).
    """
    if part_size is None or part_size >= len(inputs[0]):
        return [function(*inputs)]
    parts = zip(*(each.split(part_size) for each in inputs), strict=True)
    if not torch.is_grad_enabled():
        return [function(*part) for part in parts]
    return [checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
