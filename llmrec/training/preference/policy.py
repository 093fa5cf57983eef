"""What dpo and grpo start from and leave: a merged checkpoint, the prompts of the training split, a LoRA of its own.

The policy is the checkpoint with a fresh LoRA, and the reference is the policy with the LoRA off, so there is no second
model: the first loss of DPO is ln 2 and the first KL of GRPO is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from llmrec.configs import PreferenceConfig
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import TRAINING, SidConfig, load_model, load_tokenizer
from llmrec.model.prompts import most_prompt_tokens
from llmrec.runtime import processes
from llmrec.runtime.manifest import JsonObject, verify
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.training.start import RunInputs, check, check_length, save_checkpoint
from llmrec.training.trainer import SidTrainer
from llmrec.training.weights import load_frozen, lora_config, merge


@dataclass(frozen=True)
class Prompts:
    """What the policy is asked.

    Attributes:
        user_ids: External id of each prompt's user.
        histories: Item rows before the target, oldest first; all of them, also where the prompt shows fewer.
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
        """The given prompts, in the given order."""
        lists = (self.user_ids, self.histories, self.sequences)
        users, histories, sequences = ([each[i] for i in places] for each in lists)
        return Prompts(users, histories, self.targets[np.asarray(places, dtype=np.int64)], sequences)


def training_prompts(catalog: Catalog, config: PreferenceConfig) -> Prompts:
    """A prompt for every target of the training split that has a history, or a random sample of them."""
    places = []  # of sequence and target
    sequences = catalog.train.sequences()
    for number, sequence in enumerate(sequences):
        first = 1 if config.targets == "every_item" else max(1, len(sequence) - 1)
        places += [(number, target) for target in range(first, len(sequence))]
    if config.max_prompts is not None and config.max_prompts < len(places):
        drawn = np.random.default_rng(config.seed).choice(len(places), config.max_prompts, replace=False)
        places = [places[i] for i in np.sort(drawn)]
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


def load_start(config: PreferenceConfig, problems: Sequence[str] = ()) -> RunInputs:
    """Read and check everything but the weights.

    Args:
        config: Of the stage.
        problems: What the stage has found wrong itself.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue are not usable.
    """
    if (Path(config.model) / "adapter_config.json").is_file():
        raise ValueError(
            f"'{config.model}' is an adapter, not a merged model, so that with the new LoRA off nothing of what it has "
            "learned would be left; give the directory that `llmrec sft` wrote, which holds the merged weights."
        )
    verify(config.model, *TRAINING)
    catalog = Catalog.load(config.catalog)
    sid_config, table, details = SidConfig.load(config.model)
    if processes.sharding() == "FSDP":
        problems = [*problems, f"{config.stage} trains a LoRA alone; launch with recipes/accelerate/ddp.yaml"]
    if not problems and all(len(sequence) < 2 for sequence in catalog.train.sequences()):
        problems = [f"'{config.catalog}' has no training sequence of two items, so no item with a history to prefer"]
    check(config, catalog, table.item_ids, details.get("catalog_sha256"), problems)
    tokenizer = load_tokenizer(config.model)
    sid_config.vocabulary.check(tokenizer)
    prefix = sid_config.prompt.prefix(tokenizer)
    most_tokens = most_prompt_tokens(prefix, sid_config.max_history + 1, table.num_levels)
    check_length(config.model, sid_config.max_history, most_tokens)
    if config.normalize_over != "checkpoint":
        sid_config = dataclasses.replace(sid_config, normalize_over=config.normalize_over)
    return RunInputs(catalog, sid_config, table, details, tokenizer, prefix)


def load_policy(config: PreferenceConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, LoraConfig]:
    """The checkpoint, frozen, and the LoRA that a trainer of TRL shall put on it.

    TRL takes the two apart: given a model that has an adapter, it would add a copy of that as the reference. It turns
    dropout modules off, but not the dropout inside of attention functions, which here is turned off too: policy and
    reference have to be the same function at the start.

    Raises:
        ValueError: If 4-bit weights are asked for without bitsandbytes.
    """
    model = load_frozen(config, dtype)
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model, lora_config(config, "all-linear")


def save_policy(
    config: PreferenceConfig,
    start: RunInputs,
    trainer: SidTrainer,
    counts: JsonObject,
    dtype: torch.dtype,
    directory: Path,
) -> None:
    """Write the policy, merged; where no step was better than the start, the weights of the start as they were.

    Args:
        config: Of the stage.
        start: What it started from.
        trainer: At its end.
        counts: With those of `llmrec.training.validation.chosen`.
        dtype: Type of the weights that were frozen.
        directory: To write into.
    """
    if counts.get("saved_step") == 0:
        merged = load_model(config.model)
    else:
        merged = merge(trainer.model, config, dtype, directory / SCRATCH)
    save_checkpoint(config, start, merged, trainer.state.log_history, counts, directory)
