"""Supervised fine-tuning on TRL's SFTTrainer.

Departures from TRL: the examples are item rows that the collator turns into tokens, and the loss is
`llmrec.training.losses`, so its text preparation and its fused head are not used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from llmrec import processes
from llmrec.artifact import SCRATCH
from llmrec.checkpoint import without_tensor_bars
from llmrec.configs import SftConfig
from llmrec.console import is_quiet, say
from llmrec.evaluation.learning import JUDGING
from llmrec.training.checkpoints import WholeCheckpoints, newest_whole
from llmrec.training.examples import HistoryCollator
from llmrec.training.optimizer import build_optimizer
from llmrec.training.validation import Validation, saving
from llmrec.training.weights import train_in_float32, without_renaming_warning


class SidSFTTrainer(WholeCheckpoints, SFTTrainer):
    """SFTTrainer with the loss of the model's own forward (`sid_loss_in_forward`), instead of TRL's fused head."""

    compute_loss = Trainer.compute_loss

    def __init__(self, config: SftConfig, validation: Validation | None = None, **options: Any):
        self.config = config
        super().__init__(eval_dataset=validation and validation.rows, **options)
        train_in_float32(self.model)  # TRL casts what trains on a 4-bit base to bfloat16, too coarse for Adam's steps
        self.validation = validation
        if validation is not None:
            self.add_callback(validation)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """`build_optimizer`'s; under FSDP the Trainer takes none that was made before."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = build_optimizer(model, self.config, fused=model.device.type == "cuda")
        return self.optimizer

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """How the valid rows are ranked; TRL's would be the loss on them."""
        with self.accelerator.autocast():
            metrics = self.validation.judge(self.state)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Not of tied weights, which a checkpoint holds once and transformers 5.23 calls missing."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "all_tied_weights_keys", None) or {})
        if missing or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        if self.state.best_metric > 0:
            super()._load_best_model()
        else:
            say(
                f"{self.config.stage}: no target was found at any step, so none is the best: the weights of the last "
                "one are saved."
            )


class LogLines(TrainerCallback):
    """One line per log entry where there is no terminal for a progress bar.

    Args:
        stage: Name that it begins with.
    """

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs and args.disable_tqdm:
            say(f"{self.stage}: step {state.global_step} of {state.max_steps}, loss {float(logs['loss']):.4f}")


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


def split_batch(config: SftConfig) -> tuple[int, int]:
    """Sequences per forward pass of a process, and passes per optimiser step.

    Raises:
        ValueError: If `batch_size` cannot be shared out evenly.
    """
    share, rest = divmod(config.batch_size, processes.count())
    micro = min(config.micro_batch_size, share)
    if rest or micro == 0 or share % micro:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide into {processes.count()} processes x micro_batch_size "
            f"{config.micro_batch_size}; make it a multiple of both."
        )
    return micro, share // micro


def trainer_arguments(config: SftConfig, directory: Path, device: torch.device, dtype: torch.dtype) -> TrlSftConfig:
    """The stage's config in TRL's words; matrix products run in `dtype`, the type of frozen weights."""
    micro, accumulation = split_batch(config)
    with without_renaming_warning():
        return TrlSftConfig(
            output_dir=str(directory / SCRATCH / "trainer"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            learning_rate=config.learning_rate,
            num_train_epochs=config.epochs,
            max_steps=config.max_steps,
            lr_scheduler_type=config.scheduler,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
            bf16=dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            gradient_checkpointing=config.gradient_checkpointing,
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,  # it hides a loss that is no number, and waits for the device at each step
            **saving(config),
            report_to=config.report_to or "none",
            seed=config.seed,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            use_cache=True,  # of the saved config: the loss asks for none, but decoding without one is slow
            disable_tqdm=is_quiet() or not sys.stderr.isatty(),
            dataloader_pin_memory=device.type == "cuda",
            accelerator_config={"non_blocking": device.type == "cuda"},
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
    use_one_gpu(arguments)
    trainer = trainer_class(
        config=config,
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[
            LogLines(config.stage),
            TellEpoch(collator),
            *([EarlyStoppingCallback(config.patience)] if config.patience else []),
        ],
        validation=validation,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which `--json` keeps for the result
    return trainer


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep a single process to the first of several GPUs.

    The Trainer would wrap the model in nn.DataParallel, which TRL refuses; `accelerate launch` is the way to use more.
    """
    if arguments.n_gpu > 1:
        say(f"sft: {arguments.n_gpu} GPUs are visible and one is used; `accelerate launch scripts/sft.py` uses all.")
        arguments._n_gpu = 1


def train(trainer: SidSFTTrainer, directory: Path) -> dict[str, Any]:
    """Train to the end, from the newest whole checkpoint where there is one."""
    newest = newest_whole(directory / SCRATCH / "trainer")
    if newest is not None:
        say(f"{trainer.config.stage}: continuing from {newest.name}")
    done = int(newest.name.rsplit("-", 1)[1]) if newest else 0
    with without_tensor_bars():
        result = trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    collator, examples = trainer.data_collator, trainer.train_dataset
    lengths = [len(rows) for rows in examples["rows"] if rows]  # without the blank ones of `fill_last_batch`
    items = sum(lengths)
    tokens = collator.num_tokens(examples)
    share = (trainer.state.global_step - done) / trainer.state.global_step
    judged = [entry[JUDGING] for entry in trainer.state.log_history if JUDGING in entry and entry["step"] > done]
    seconds = result.metrics["train_runtime"] - sum(judged)
    return {
        "steps": trainer.state.global_step,
        "examples": len(lengths),
        "targets": items - sum(examples["num_context"]),
        "loss": losses[-1] if losses else result.training_loss,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens * trainer.state.epoch * share / seconds),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
