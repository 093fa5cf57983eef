"""The two halves of a Hugging Face causal LM, so that logits are computed only where they are read.

`model(...)` projects every position onto the whole vocabulary. Training reads a few positions, and decoding the tokens
of one level; both run the backbone here and multiply by the part of the output matrix they need. The scale or soft cap
that a model applies to its logits after the projection (Gemma, Cohere, Granite) is applied alike.

PEFT's wrappers are recognised by their attributes, not by their classes: importing those would load PEFT and
bitsandbytes into every process that only decodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.model.trained_rows import matrix_of, with_trained_rows

TRIED_TOKENS = 4


class BackboneOutput(Protocol):
    """Output of a backbone of transformers.

    Attributes:
        last_hidden_state: (B, T, hidden).
    """

    last_hidden_state: Tensor

    def __contains__(self, key: object) -> bool: ...


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the causal LM inside a PEFT wrapper (its LoRA layers stay active), or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"{type(inner).__name__} is no transformers model.")
    return inner


def moved(model: PreTrainedModel, target: torch.device | torch.dtype) -> PreTrainedModel:
    """Move a model to a device, or convert its weights, in place. `model.to` says the same, but hides its types."""
    return nn.Module.to(model, target)


def run_backbone(model: PreTrainedModel, **inputs: object) -> BackboneOutput:
    """Run the forward pass without the output projection; `last_hidden_state` is (B, T, hidden)."""
    return model.base_model(**inputs)


@contextlib.contextmanager
def forward_replaced(model: PreTrainedModel, forward: Callable[..., object]) -> Iterator[None]:
    """While open, let `model(...)` call `forward`, from within any wrapper of the model (PEFT, DDP, FSDP)."""
    own = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward  # also what accelerate puts over it
        if own is not None:
            model.forward = own


def output_rows(model: PreTrainedModel, rows: slice | Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Slice the output matrix, and its bias if there is one.

    Args:
        model: Causal LM.
        rows: Token ids, as a slice or (n,) int64; the whole vocabulary when left out.

    Returns:
        (rows, hidden) weight and (rows,) bias.

    Raises:
        ValueError: If the output matrix has a LoRA of its own, which its rows do not show.
    """
    head = model.get_output_embeddings()
    if hasattr(head, "lora_A"):
        raise ValueError("The LoRA adapts the output matrix; leave lm_head out of target_modules, or merge it first.")
    # PEFT's wrapper of trained rows shows no bias, and its own forward leaves it out.
    bias = getattr(head.original_module if hasattr(head, "token_adapter") else head, "bias", None)
    rows = slice(None) if rows is None else rows
    return with_trained_rows(head, rows), None if bias is None else bias[rows]


def logits(model: PreTrainedModel, hidden: Tensor, rows: slice | Tensor | None = None) -> Tensor:
    """Compute the logits of some tokens, as the model itself would.

    Args:
        model: Causal LM.
        hidden: (…, hidden) last hidden states.
        rows: Token ids, as a slice or (n,) int64; the whole vocabulary when left out.

    Returns:
        (…, rows) float32.
    """
    return finish_logits(model, project(model, hidden, rows))


def project(model: PreTrainedModel, hidden: Tensor, rows: slice | Tensor | None = None) -> Tensor:
    """Multiply hidden states by rows of the output matrix, without `finish_logits`; (…, hidden) -> (…, rows)."""
    weight, bias = output_rows(model, rows)
    return nn.functional.linear(hidden.to(weight.dtype), weight, bias)


def finish_logits(model: PreTrainedModel, scores: Tensor) -> Tensor:
    """Scale and soft-cap projected logits as the model's config says; (…) -> (…) float32."""
    return scale_logits(scores, *logit_scale(model))


def logit_scale(model: PreTrainedModel) -> tuple[float, float | None]:
    """Read the factor and the soft cap that a model applies to its projected logits from its config."""
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    return factor / (getattr(config, "logits_scaling", None) or 1.0), getattr(config, "final_logit_softcapping", None)


def scale_logits(scores: Tensor, factor: float, cap: float | None) -> Tensor:
    """Scale and soft-cap projected logits; (…) -> (…) float32."""
    scores = scores.float()
    if factor != 1.0:
        scores = scores * factor
    return torch.tanh(scores / cap) * cap if cap else scores


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the context, and put every module back into its mode afterwards.

    4-bit layers, which drop nothing out, stay in their mode: for inference on a CPU bitsandbytes changes the layout of
    their weights, and there is no way back to training.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, was_training in modes:
        module.training = was_training and type(module).__module__.startswith("bitsandbytes")
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """List the layers of a causal LM or of a PEFT model over one, first to last."""
    kinds = set(causal_lm(model)._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def compile_layers(model: nn.Module) -> None:
    """Compile each decoder layer in place; layers of one kind share their kernels, for batches of any size."""
    for layer in decoder_layers(model):
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=True)


@torch.no_grad()
def check_halves(model: PreTrainedModel) -> None:
    """Try a model, and refuse it if its logits are not its backbone's last states times its output matrix.

    Raises:
        ValueError: If something else lies between the two, such as another layer or an unknown scale.
    """
    ids, was_training = torch.arange(TRIED_TOKENS, device=model.device).unsqueeze(0), model.training
    model.eval()  # a new model is in training mode, in which its dropout would make the two differ
    expected, output = model(input_ids=ids).logits.float(), run_backbone(model, input_ids=ids)
    model.train(was_training)
    own = logits(model, output.last_hidden_state) if "last_hidden_state" in output else None
    if own is None or not torch.allclose(own, expected, atol=float(1e-2 * expected.abs().max())):
        raise ValueError(
            f"{type(model).__name__} does not multiply its last hidden states by its output matrix alone, which llmrec "
            "relies on; choose a model of another architecture, such as Llama, Qwen or Gemma."
        )


def check_rows(model: PreTrainedModel, num_tokens: int) -> None:
    """Refuse a model whose output matrix has no row for the last token that `extend` added.

    Raises:
        ValueError: If it has fewer rows than `num_tokens`.
    """
    rows = len(matrix_of(model.get_output_embeddings()))
    if rows < num_tokens:
        raise ValueError(
            f"The model has {rows} token rows but the SID tokens end at {num_tokens}; run `llmrec extend` on it."
        )


def check_context(model: PreTrainedModel, length: int) -> None:
    """Refuse sequences that are longer than a model attends over.

    Raises:
        ValueError: If `length` tokens exceed its positions, sliding window or attention chunk.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    chunk = getattr(config, "attention_chunk_size", None)
    limits = [limit for limit in (limit, window, chunk) if limit]
    if limits and length > min(limits):
        raise ValueError(
            f"Prompt and SID take {length} tokens but the model attends over {min(limits)}; lower max_history."
        )
