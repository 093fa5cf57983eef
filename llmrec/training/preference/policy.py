"""Start and end of a run of dpo or grpo: a merged checkpoint, the prompts of the training split, a fresh LoRA.

The policy is the checkpoint with a fresh LoRA, and the reference is the policy with its LoRA off, so there is no second
model in memory: the first loss of DPO is ln 2 and the first KL of GRPO is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.configs import TRAINING, PreferenceConfig
from llmrec.data.catalog import Catalog
from llmrec.model.backbone import evaluation_mode
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.model.prompts import most_prompt_tokens
from llmrec.runtime import processes
from llmrec.runtime.manifest import JsonObject, verify
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.sid.aliases import refuse_aliases
from llmrec.sid.answer_head import refuse_head
from llmrec.sid.normalization import NormalizeOver
from llmrec.training.start import RunInputs, check, check_length, save_checkpoint
from llmrec.training.weights import lora_config, merge, without_renaming_warning


@dataclass(frozen=True)
class Prompts:
    """The histories that the policy is asked about, with the items that followed.

    Attributes:
        user_ids: External id of each prompt's user.
        histories: Item rows before the target, oldest first; all of them, even if the prompt shows fewer.
        targets: (n,) int64 item rows that came next.
        sequences: Item rows of the user's whole training sequence, which may go on after the target.
    """

    user_ids: list[str]
    histories: list[np.ndarray]
    targets: np.ndarray
    sequences: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, places: Sequence[int]) -> Prompts:
        """Select the given prompts, in the given order."""
        return Prompts(
            [self.user_ids[i] for i in places],
            [self.histories[i] for i in places],
            self.targets[np.asarray(places, dtype=np.int64)],
            [self.sequences[i] for i in places],
        )


def training_prompts(catalog: Catalog, config: PreferenceConfig) -> Prompts:
    """Make a prompt for each target of the training split that has a history."""
    sequences = catalog.train.sequences()
    places = []  # of sequence and target
    for number, sequence in enumerate(sequences):
        first = 1 if config.targets == "every_item" else max(1, len(sequence) - 1)
        places += [(number, target) for target in range(first, len(sequence))]
    return Prompts(
        [catalog.train.user_ids[number] for number, _ in places],
        [sequences[number][:target] for number, target in places],
        np.array([sequences[number][target] for number, target in places], dtype=np.int64),
        [sequences[number] for number, _ in places],
    )


def check_batch(num_prompts: int, batch_size: int) -> None:
    """Refuse prompts that do not fill one optimiser step.

    Raises:
        ValueError: If there are fewer than `batch_size`.
    """
    if num_prompts < batch_size:
        raise ValueError(f"There are {num_prompts} prompts to train on, fewer than batch_size {batch_size}; lower it.")


def load_start(config: PreferenceConfig, normalize_over: NormalizeOver | Literal["checkpoint"]) -> RunInputs:
    """Read and check everything but the weights.

    Args:
        config: Options of the stage.
        normalize_over: Tokens that a code's probability is normalised over; `checkpoint` keeps those of the checkpoint.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue is not usable.
    """
    if (Path(config.model) / "adapter_config.json").is_file():
        raise ValueError(
            f"'{config.model}' is an adapter, not a merged model, so switching off the new LoRA would also switch off "
            "what it has learned; give the directory that `llmrec sft` wrote, which holds the merged weights."
        )
    verify(config.model, *TRAINING, "import")
    catalog = Catalog.load(config.catalog)
    sid_config, table, details = SidConfig.load(config.model)
    refuse_head(sid_config.vocabulary.head, config.stage)
    refuse_aliases(table, config.stage)
    if sid_config.vocabulary.has_one_block:
        raise ValueError(
            f"'{config.model}' writes histories in pieces, in another way whenever it is trained, which {config.stage} "
            "does not do; train it further with `llmrec sft`."
        )
    problems = []
    if processes.sharding() == "FSDP":
        problems.append(f"{config.stage} trains a LoRA alone; launch with recipes/accelerate/ddp.yaml")
    elif all(len(sequence) < 2 for sequence in catalog.train.sequences()):
        problems.append(f"'{config.catalog}' has no training sequence of two items, so no target with a history")
    check(config, catalog, table.item_ids, details.get("catalog_sha256"), problems)
    tokenizer = load_tokenizer(config.model)
    sid_config.vocabulary.check(tokenizer)
    prefix = sid_config.prompt.prefix(tokenizer)
    most_tokens = most_prompt_tokens(prefix, sid_config.max_history + 1, sid_config.vocabulary)
    check_length(config.model, sid_config.max_history, most_tokens)
    if normalize_over != "checkpoint":
        sid_config = dataclasses.replace(sid_config, normalize_over=normalize_over)
    return RunInputs(catalog, sid_config, table, details, tokenizer, prefix)


def load_policy(config: PreferenceConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load the checkpoint that a run starts from, frozen and without dropout.

    Policy and reference have to be the same function at the start, so dropout is off, also inside attention functions.

    Args:
        config: Options of the stage.
        device: Device of the model.
        dtype: Type of the frozen weights.
    """
    model = load_model(config.model, dtype=dtype)
    nn.Module.to(model, device)  # in place; the signature of the model's own `to` is hidden
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]  # a number, which torch types as a module
    return model


def add_lora(model: PreTrainedModel, config: PreferenceConfig) -> PeftModel:
    """Put a fresh LoRA on the checkpoint; the result is the policy."""
    with without_renaming_warning():
        policy = get_peft_model(model, lora_config(config, "all-linear"))
    if config.gradient_checkpointing:  # the frozen embeddings give no gradient to start from
        policy.enable_input_require_grads()
    return policy


@torch.no_grad()
def reference_log_probs(policy: PeftModel, accelerator: Accelerator, asked: dict[str, Tensor]) -> Tensor:
    """(B, M, L) log-probability of each code under the reference: the policy with its LoRA off.

    Args:
        policy: Model that trains, as it is without the wrappers of several processes.
        accelerator: Accelerator of the trainer, for the precision of training.
        asked: `input_ids`, `attention_mask` and `completions` of `sibling_scores_in_forward`.
    """
    with policy.disable_adapter(), evaluation_mode(policy), accelerator.autocast():
        return policy(**asked).log_probs


def save_policy(
    config: PreferenceConfig,
    start: RunInputs,
    policy: PeftModel,
    log: list[JsonObject],
    counts: JsonObject,
    dtype: torch.dtype,
    directory: Path,
) -> None:
    """Write the merged policy; if no step was better than the start, write the start's weights as they were.

    Args:
        config: Options of the stage.
        start: What the run started from.
        policy: The policy after training.
        log: Log of the training.
        counts: Counts of the manifest, with those of `llmrec.training.validation.best_step`.
        dtype: Type of the frozen weights.
        directory: Directory to write into.
    """
    if counts.get("saved_step") == 0:
        merged = load_model(config.model)
    else:
        merged = merge(policy, config, dtype, directory / SCRATCH)
    save_checkpoint(config, start, merged, log, counts, directory)
