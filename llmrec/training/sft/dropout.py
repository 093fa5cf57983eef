"""Dropout in models that have none: on the embeddings and on what each block of a layer adds to the residual stream.

Recent LLMs come without dropout, and their configs offer it for attention weights at most. A small model that is
trained from scratch on a small catalogue sees each sequence dozens of times and needs it. Hooks apply it while a model
trains; the modules, config and weights of the model stay as they are.

Source: residual and embedding dropout of the Transformer (arXiv:1706.03762, section 5.4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from llmrec.model.backbone import causal_lm, decoder_layers


@contextlib.contextmanager
def residual_dropout(model: nn.Module, probability: float) -> Iterator[None]:
    """Inside the context, drop elements of the embeddings and of every block's output in training mode.

    Args:
        model: Causal LM or a PEFT model over one.
        probability: Probability that an element is dropped; with 0 nothing is hooked.
    """

    def drop(
        module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...]:
        if isinstance(output, tuple):  # attention returns its weights too
            return functional.dropout(output[0], probability, module.training), *output[1:]
        return functional.dropout(output, probability, module.training)

    handles = [module.register_forward_hook(drop) for module in (dropout_places(model) if probability else [])]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dropout_places(model: nn.Module) -> list[nn.Module]:
    """List the embedding and those parts of each decoder layer that multiply by a matrix, so not the norms."""
    blocks = [child for layer in decoder_layers(model) for child in layer.children()]
    return [
        causal_lm(model).get_input_embeddings(),
        *(block for block in blocks if any(parameter.dim() > 1 for parameter in block.parameters())),
    ]
