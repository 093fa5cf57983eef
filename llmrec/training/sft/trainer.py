"""Supervised fine-tuning on TRL's SFTTrainer.

Departures from TRL: the examples are item rows that the collator turns into tokens, and the loss is
`llmrec.training.sft.losses`, so its text preparation and its fused head are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from llmrec.configs import SftConfig
from llmrec.runtime.manifest import JsonObject
from llmrec.training import trainer as shared
from llmrec.training.sft.examples import HistoryCollator, num_targets
from llmrec.training.trainer import SidTrainer, shared_arguments, use_one_gpu
from llmrec.training.validation import Validation
from llmrec.training.weights import without_renaming_warning


class SidSFTTrainer(SidTrainer, SFTTrainer):
    """SFTTrainer with the loss of the model's own forward (`sid_loss_in_forward`), instead of TRL's fused head."""

    compute_loss = Trainer.compute_loss


class TellEpoch(TrainerCallback):
    """Moves the collator on to the epoch whose first batch is about to be drawn, also where a run continues in one.

    Args:
        collator: The one that the trainer calls. Workers of a data loader take a copy of it as an epoch begins.
    """

    def __init__(self, collator: HistoryCollator):
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch)


def trainer_arguments(config: SftConfig, directory: Path, device: torch.device, dtype: torch.dtype) -> TrlSftConfig:
    """The stage's config in TRL's words."""
    with without_renaming_warning():
        return TrlSftConfig(
            **shared_arguments(config, directory, device, dtype),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        )


def make_trainer(
    config: SftConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    collator: HistoryCollator,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
    validation: Validation | None = None,
    trainer_class: Callable[..., SidSFTTrainer] = SidSFTTrainer,
) -> SidSFTTrainer:
    """TRL's trainer over item rows."""
    arguments = trainer_arguments(config, directory, device, dtype)
    use_one_gpu(arguments, config)
    return trainer_class(
        config=config,
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[TellEpoch(collator)],
        validation=validation,
    )


def train(trainer: SidSFTTrainer, directory: Path) -> JsonObject:
    """Train to the end, from the newest whole checkpoint where there is one; counts of the manifest."""
    counts, epochs_per_second = shared.train(trainer, directory)
    collator, examples = trainer.data_collator, trainer.train_dataset
    lengths = [len(rows) for rows in examples["rows"] if rows]  # without the blank ones of `fill_last_batch`
    return {
        **counts,
        "examples": len(lengths),
        "targets": num_targets(examples),
        "tokens_per_second": round(collator.num_tokens(examples) * epochs_per_second),
    }
