"""What trains, and how it becomes one model again.

In sft LoRA trains beside the SID rows (PEFT's trainable token indices), or those rows train alone; everything else is
frozen, and merging gives a model that scores like the adapter. What trains is float32, whatever the frozen weights are.

The stages that optimise preferences train a fresh LoRA on a merged checkpoint and nothing else, so that with the
adapter off it is the policy that they started from. The SID rows stay: sft has trained them on every item of every
history, a preference step would move only the codes of its few completions, and servers load a LoRA without rows.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel, Trainer

from llmrec.configs import FineTuneConfig, SftConfig
from llmrec.model.backbone import causal_lm
from llmrec.model.checkpoint import load_model
from llmrec.model.trained_rows import look_up_apart
from llmrec.runtime import processes
from llmrec.sid.vocabulary import SidVocabulary


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # QLoRA, arXiv:2305.14314, section 3
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_trainable(config: SftConfig, vocabulary: SidVocabulary, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """The extended base, prepared for what `config.train` asks for.

    Args:
        config: Of the stage.
        vocabulary: Tokens whose rows train, unless all weights do.
        dtype: Type of the weights that are frozen.

    Raises:
        ValueError: If a LoRA target matches nothing, or 4-bit weights are asked for without bitsandbytes.
    """
    if config.train == "full":
        return load_model(config.model, dtype=torch.float32)
    return add_adapter(load_frozen(config, dtype), config, vocabulary)


def load_frozen(config: FineTuneConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model that an adapter is put on, in 4 bits where the config asks for it.

    Raises:
        ValueError: If 4-bit weights are asked for without bitsandbytes.
    """
    if config.quantization != "nf4":
        return load_model(config.model, dtype=dtype)
    require_bitsandbytes()
    return load_model(config.model, dtype=dtype, quantization_config=nf4_config(dtype))


def require_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ValueError("quantization 'nf4' needs bitsandbytes; run `pip install llmrec[quant]`.") from None


def add_adapter(model: PreTrainedModel, config: SftConfig, vocabulary: SidVocabulary) -> PeftModel:
    """Make the embeddings of the SID tokens trainable, in and out, and add LoRA unless they train alone."""
    # Without a target PEFT 0.21 refuses; its TrainableTokensConfig would hold the rows in other modules than LoRA's
    # do, whose `weight` shows the rows as they were before training.
    targets = DUMMY_TARGET_MODULES if config.train == "sid_tokens" else "all-linear"
    lora = lora_config(config, targets, trained_rows(model, vocabulary))
    torch.manual_seed(config.seed)
    with without_renaming_warning():
        adapted = get_peft_model(model, lora)
    train_in_float32(adapted)
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
    """Token ids of the rows that train, for the embedding and for an output matrix that is not tied to it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    matrices = [embedding] if head.weight is embedding.weight else [embedding, head]
    return {names[id(matrix)]: list(vocabulary.token_range) for matrix in matrices}


@contextlib.contextmanager
def without_renaming_warning() -> Iterator[None]:
    """PEFT 0.21 and TRL 1.16 say gradient_checkpointing, of which transformers 5.23 warns; nothing here can help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
        yield


def train_in_float32(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def whole(trainer: Trainer, config: FineTuneConfig) -> PreTrainedModel | PeftModel:
    """What was trained, with all of its weights in the first process; every process must call it.

    Args:
        trainer: At its end.
        config: Of the stage.
    """
    if processes.sharding() is None:
        return trainer.model
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # empty but in the first process
    if not processes.is_main():
        return trainer.model
    model = load_model(config.model, dtype=torch.float32)
    model.load_state_dict(gathered)
    return model


def merge(
    model: PreTrainedModel | PeftModel, config: FineTuneConfig, dtype: torch.dtype, scratch: Path
) -> PreTrainedModel:
    """Trained weights as one ordinary model, in the type that the base has on disk.

    A 4-bit base is loaded as it was trained on and dequantised before LoRA is added to it: PEFT would quantise the sum
    again, and the result would score neither like the adapter nor like the base.

    Args:
        model: As it was trained.
        config: Of the stage.
        dtype: Type of the weights that were frozen.
        scratch: Directory for the adapter of a 4-bit base.
    """
    if not isinstance(model, PeftModel):
        return model.to(stored_dtype(config.model))
    if config.quantization == "nf4":
        model.save_pretrained(scratch / "adapter")
        base = load_model(config.model, dtype=dtype, quantization_config=nf4_config(dtype))
        model = PeftModel.from_pretrained(base.dequantize(), scratch / "adapter")
    merged = model.float().merge_and_unload()
    return causal_lm(merged).to(stored_dtype(config.model))


def stored_dtype(path: str | Path) -> torch.dtype:
    """Type of the weights of a model directory, as its config names it."""
    return AutoConfig.from_pretrained(str(path)).dtype or torch.float32
