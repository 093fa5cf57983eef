"""What all stages that train the LLM ask of TRL's trainers: arguments, optimiser, evaluation, log lines, resuming.

Each stage's trainer is `SidTrainer` before one of TRL's.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmrec.configs import FineTuneConfig
from llmrec.evaluation.learning import VALIDATION_SECONDS
from llmrec.model.checkpoint import without_tensor_bars
from llmrec.runtime import processes
from llmrec.runtime.console import is_quiet, say
from llmrec.runtime.manifest import JsonObject
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.training.checkpoints import WholeCheckpoints, newest_whole
from llmrec.training.validation import Validation, chosen, saving
from llmrec.training.weights import train_in_float32

SID_ROWS = "trainable_tokens"  # in the name of PEFT\'s parameter for trained token rows
DIVERGED = (
    "training has diverged, its loss is not finite. Lower learning_rate or raise warmup_steps, and run again with "
    "--overwrite."
)


class SidTrainer(WholeCheckpoints):
    """Goes before one of TRL's trainers among the bases of a stage's trainer.

    Args:
        config: Of the stage.
        validation: What ranks the valid rows; none are ranked without it.
        options: Of TRL's trainer.

    Attributes:
        shown: Values of a log entry that are said where there is no terminal.
    """

    shown: tuple[str, ...] = ("loss",)

    def __init__(self, config: FineTuneConfig, validation: Validation | None = None, **options: Any):
        self.config = config
        super().__init__(eval_dataset=validation and validation.rows, **options)
        train_in_float32(self.model)  # TRL casts what trains on a 4-bit base to bfloat16, too coarse for Adam's steps
        self.validation = validation
        if validation is not None:
            self.add_callback(validation)
        self.add_callback(Divergence(config.stage))
        self.add_callback(LogLines(config.stage, self.shown))
        if config.patience:
            self.add_callback(EarlyStoppingCallback(config.patience))
        self.remove_callback(PrinterCallback)  # it prints to stdout, which `--json` keeps for the result

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


class Divergence(TrainerCallback):
    """Ends a run whose loss is not finite, after which no weight is; with the best step where there is one.

    Args:
        stage: As messages name it.
    """

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: JsonObject | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the mean loss since the last entry, and at the end of training at that of all steps.

        Raises:
            ValueError: If no step before can be saved.
        """
        loss = (logs or {}).get("loss", (logs or {}).get("train_loss", 0.0))
        if math.isfinite(loss):
            return
        if chosen(state).get("saved_step", state.global_step) == state.global_step:
            raise ValueError(f"Step {state.global_step}: {DIVERGED}")
        if not control.should_training_stop:
            say(f"{self.stage}: step {state.global_step} of {state.max_steps}, loss {loss}: it ends here.")
            control.should_training_stop = True


class LogLines(TrainerCallback):
    """One line per log entry where there is no terminal for a progress bar.

    Args:
        stage: As the lines name it.
        shown: Values of an entry, as far as it has them.
    """

    def __init__(self, stage: str, shown: tuple[str, ...]):
        self.stage, self.shown = stage, shown

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: JsonObject | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs and args.disable_tqdm:
            values = ", ".join(f"{name} {float(logs[name]):.4f}" for name in self.shown if logs.get(name) is not None)
            say(f"{self.stage}: step {state.global_step} of {state.max_steps}, {values}")


def split_batch(config: FineTuneConfig) -> tuple[int, int]:
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


def shared_arguments(config: FineTuneConfig, directory: Path, device: torch.device, dtype: torch.dtype) -> JsonObject:
    """A config in the words of TrainingArguments; matrix products run in `dtype`, the type of frozen weights."""
    micro, accumulation = split_batch(config)
    return {
        "output_dir": str(directory / SCRATCH / "trainer"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,  # the Trainer would take one step for 0
        "lr_scheduler_type": config.scheduler,
        "warmup_steps": config.warmup_steps,
        "max_grad_norm": config.max_grad_norm,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # it hides a loss that is no number, and waits for the device at each step
        **saving(config),
        "report_to": config.report_to or "none",
        "seed": config.seed,
        "remove_unused_columns": False,
        "use_cache": True,  # of the saved config: training asks for none, but decoding without one is slow
        "disable_tqdm": is_quiet() or not sys.stderr.isatty(),
        "dataloader_pin_memory": device.type == "cuda",
        "accelerator_config": {"non_blocking": device.type == "cuda"},
    }


def use_one_gpu(arguments: TrainingArguments, config: FineTuneConfig) -> None:
    """Keep a single process to the first of several GPUs.

    The Trainer would wrap the model in nn.DataParallel, which TRL refuses; `accelerate launch` is the way to use more.
    """
    if arguments.n_gpu > 1:
        how = "" if config.one_process else f"; `accelerate launch scripts/{config.stage}.py` uses all"
        say(f"{config.stage}: {arguments.n_gpu} GPUs are visible and one is used{how}.")
        arguments._n_gpu = 1


def train(trainer: SidTrainer, directory: Path) -> tuple[JsonObject, float]:
    """Train to the end, from the newest whole checkpoint where there is one.

    Returns:
        Counts of the manifest, and the epochs per second of this call.
    """
    newest = newest_whole(directory / SCRATCH / "trainer")
    if newest is not None:
        say(f"{trainer.config.stage}: continuing from {newest.name}")
    done = int(newest.name.rsplit("-", 1)[1]) if newest else 0
    with without_tensor_bars():
        result = trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    state, judged_before = trainer.state, done if newest else -1
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    judging = [
        e[VALIDATION_SECONDS] for e in state.log_history if VALIDATION_SECONDS in e and e["step"] > judged_before
    ]
    seconds = result.metrics["train_runtime"] - sum(judging)
    counts = {
        "steps": state.global_step,
        "loss": losses[-1] if losses else result.training_loss,
        "train_seconds": round(seconds, 1),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
    return counts, state.epoch * (state.global_step - done) / state.global_step / seconds


def build_optimizer(model: torch.nn.Module, config: FineTuneConfig, fused: bool = False) -> torch.optim.Optimizer:
    """AdamW; the SID rows, which start from noise, have their own learning rate, and no decay towards zero.

    Args:
        model: What trains.
        config: Of the stage.
        fused: Whether a step is one kernel for many parameters.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rows = [p for name, p in trained if SID_ROWS in name]
    decayed = [p for name, p in trained if SID_ROWS not in name and p.dim() > 1]
    others = [p for name, p in trained if SID_ROWS not in name and p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if rows:  # of the stages, sft alone trains them
        groups.append({"params": rows, "weight_decay": 0.0, "lr": config.sid_learning_rate or config.learning_rate})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=fused)
