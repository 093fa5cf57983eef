"""Trainable parameters of a model (LoRA, embeddings of SID tokens, or all), and merging them into one ordinary model.

In sft, LoRA trains together with the embeddings of the SID tokens (PEFT's trainable token indices), or those embeddings
train alone. Everything else is frozen, and the merged model scores like the adapter. What trains is float32, whatever
the type of the frozen weights.

The stages that optimise preferences train nothing but a fresh LoRA on a merged checkpoint, so the policy that they
started from is the same model with the LoRA off. The embeddings of the SID tokens stay: sft has trained them on every
item of every history, while a preference step would move only the codes of its few completions, and servers load a LoRA
without embeddings.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from llmrec.configs import FineTuneConfig, SftConfig
from llmrec.model.backbone import causal_lm, moved
from llmrec.model.checkpoint import load_model
from llmrec.model.heads.content_rows import add_content_rows
from llmrec.model.heads.own_files import FILES
from llmrec.model.trained_rows import look_up_apart
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.joined_lora import join_lora


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Describe 4-bit weights as QLoRA holds them (arXiv:2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_trainable(config: SftConfig, vocabulary: SidVocabulary, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """Load the extended base and make trainable what `config.train` names.

    Args:
        config: Options of the stage.
        vocabulary: SID tokens and item tokens, whose embeddings train unless all weights do.
        dtype: Type of the frozen weights.

    Raises:
        ValueError: If 4-bit weights are asked for without bitsandbytes.
    """
    if config.train == "full":
        model = load_model(config.model, dtype=torch.float32)
        if config.content_passes:
            add_content_rows(model, vocabulary, config.model)
        if vocabulary.head is not None and not is_tied(model):
            model.get_output_embeddings().requires_grad_(False)  # a head answers, so nothing reads it
        return model
    model = load_frozen(config, dtype)
    if config.content_passes:
        add_content_rows(model, vocabulary, config.model)
    return add_adapter(model, config, vocabulary)


def load_frozen(config: FineTuneConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model that an adapter is put on, in 4 bits if the config says so.

    Raises:
        ValueError: If 4-bit weights are asked for without bitsandbytes.
    """
    if config.quantization != "nf4":
        return load_model(config.model, dtype=dtype)
    require_bitsandbytes()
    return load_model(config.model, dtype=dtype, quantization_config=nf4_config(dtype))


def require_bitsandbytes() -> None:
    """Refuse 4-bit weights without bitsandbytes.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ValueError("quantization 'nf4' needs bitsandbytes; run `pip install llmrec[quant]`.") from None


def add_adapter(model: PreTrainedModel, config: SftConfig, vocabulary: SidVocabulary) -> PeftModel:
    """Make the embeddings of SID and item tokens trainable, and add LoRA unless they train alone."""
    # Without a target PEFT 0.21 refuses; its TrainableTokensConfig would hold the embeddings in other modules than
    # LoRA's do, whose `weight` shows them as they were before training.
    targets = DUMMY_TARGET_MODULES if config.train == "sid_tokens" else "all-linear"
    rows = trained_rows(model, vocabulary) if vocabulary.num_tokens else None  # words have rows that stay
    lora = lora_config(config, targets, rows)
    lora.modules_to_save = [name for name in FILES if hasattr(model, name)] or None
    torch.manual_seed(config.seed)
    with without_renaming_warning():
        adapted = get_peft_model(model, lora)
    if config.gradient_checkpointing:
        adapted.enable_input_require_grads()  # transformers#42489: its Trainer should do so, and does not
    train_in_float32(adapted)
    join_lora(adapted)
    if rows is not None:
        look_up_apart(model.get_input_embeddings())
    return adapted


def lora_config(
    config: FineTuneConfig,
    target_modules: list[str] | str = "all-linear",
    trainable_token_indices: dict[str, list[int]] | None = None,
) -> LoraConfig:
    """Build PEFT's config of a stage's LoRA.

    Source: LoRA arXiv:2106.09685.
    """
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=target_modules,
        trainable_token_indices=trainable_token_indices,
    )


def trained_rows(model: PreTrainedModel, vocabulary: SidVocabulary) -> dict[str, list[int]]:
    """Token ids whose rows train, by the name of the embedding and of an output matrix that is not tied to it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    matrices = [embedding] if is_tied(model) or vocabulary.head is not None else [embedding, head]
    # Items are scored by their rows in the embedding; the output matrix needs those of the codes alone.
    around = [] if vocabulary.layout is None else [*vocabulary.layout.begin, *vocabulary.layout.end]
    rows = {id(head): vocabulary.token_range, id(embedding): [*vocabulary.added_range, *around]}
    return {names[id(matrix)]: list(rows[id(matrix)]) for matrix in matrices}


def is_tied(model: PreTrainedModel) -> bool:
    """Tell whether the embedding is also the output matrix."""
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@contextlib.contextmanager
def without_renaming_warning() -> Iterator[None]:
    """Silence transformers 5.23's warning of the name gradient_checkpointing, which PEFT 0.21 still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
        yield


def train_in_float32(model: torch.nn.Module) -> None:
    """Hold trainable parameters in float32: the steps of Adam are smaller than bfloat16 can represent."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge(
    model: PreTrainedModel | PeftModel, config: FineTuneConfig, dtype: torch.dtype, scratch: Path
) -> PreTrainedModel:
    """Merge trained weights into one ordinary model, in the type that the base has on disk.

    A 4-bit base is loaded again as it was trained on and dequantised before LoRA is added to it. PEFT would quantise
    the sum once more, and the result would score neither like the adapter nor like the base.

    Args:
        model: Model as it was trained.
        config: Options of the stage.
        dtype: Type that the frozen weights had.
        scratch: Directory for the adapter of a 4-bit base.
    """
    if isinstance(model, PeftModel):
        if config.quantization == "nf4":
            model.save_pretrained(str(scratch / "adapter"))
            base = load_model(config.model, dtype=dtype, quantization_config=nf4_config(dtype))
            model = PeftModel.from_pretrained(base.dequantize(), scratch / "adapter")
        model = causal_lm(model.float().merge_and_unload())
    return moved(model, stored_dtype(config.model))


def stored_dtype(path: str | Path) -> torch.dtype:
    """Type of the weights in a model directory, as its config names it."""
    return AutoConfig.from_pretrained(str(path)).dtype or torch.float32
