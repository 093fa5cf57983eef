"""The trainer of supervised fine-tuning.

The examples are item rows that the collator turns into tokens, and the loss is computed in the model's own forward
(`llmrec.training.sft.losses`), so the trainer that all stages share needs no addition but the epoch of the collator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmrec.configs import SftConfig
from llmrec.runtime.manifest import JsonObject
from llmrec.training import trainer as shared
from llmrec.training.arguments import training_arguments
from llmrec.training.sft.examples import HistoryCollator, num_targets
from llmrec.training.sft.item_decay import ItemDecay
from llmrec.training.trainer import SidTrainer
from llmrec.training.validation import Validation


class EpochOfCollator(TrainerCallback):
    """Tells the collator which epoch begins, also where a run is resumed in the middle of one.

    Args:
        collator: Collator of the trainer. Workers of a data loader take a copy of it when an epoch begins.
    """

    def __init__(self, collator: HistoryCollator):
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Set the epoch before its first batch is drawn."""
        self.collator.epoch = int(state.epoch or 0)


def make_trainer(
    config: SftConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    collator: HistoryCollator,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
    validation: Validation | None = None,
    trainer_class: Callable[..., SidTrainer] = SidTrainer,
) -> SidTrainer:
    """Make the trainer of a run.

    Args:
        config: Options of the stage.
        model: Model to train; `sid_loss_in_forward` has to be open on it.
        tokenizer: Tokenizer of the model.
        examples: Examples of `build_dataset`, filled up by `fill_last_batch`.
        collator: Collator that turns them into tokens.
        directory: Directory of the run.
        device: Device to train on.
        dtype: Type of matrix products and of frozen weights.
        validation: Validation examples and their ranker, if there is validation.
        trainer_class: Class of the trainer, with the arguments of `SidTrainer`.
    """
    callbacks: list[TrainerCallback] = [EpochOfCollator(collator)]
    items = collator.encoder.items
    if items is not None and config.item_decay > 0:
        callbacks.append(ItemDecay(items, config.item_decay))
    return trainer_class(
        config=config,
        model=model,
        args=training_arguments(config, directory, device, dtype),
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=callbacks,
        validation=validation,
    )


def train(trainer: SidTrainer, collator: HistoryCollator, directory: Path) -> JsonObject:
    """Train to the end, from the newest whole checkpoint if there is one, and return the counts of the manifest."""
    counts, epochs_per_second = shared.train(trainer, directory)
    examples = trainer.train_dataset
    lengths = [len(rows) for rows in examples["rows"] if rows]  # without the blank ones of `fill_last_batch`
    return {
        **counts,
        "examples": len(lengths),
        "targets": num_targets(examples),
        "tokens_per_second": round(collator.num_tokens(examples) * epochs_per_second),
    }
