"""Options of a stage, translated into TrainingArguments of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from llmrec.configs import FineTuneConfig
from llmrec.evaluation.learning import NDCG
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.training.weights import without_renaming_warning

KEPT = 2  # checkpoints, and with validation also that of the best step


def split_batch(config: FineTuneConfig) -> tuple[int, int]:
    """Divide a batch into sequences per forward pass of a process, and passes per optimiser step.

    Raises:
        ValueError: If `batch_size` cannot be divided evenly.
    """
    share, rest = divmod(config.batch_size, processes.count())
    micro = min(config.micro_batch_size, share)
    if rest or micro == 0 or share % micro:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide into {processes.count()} processes x micro_batch_size "
            f"{config.micro_batch_size}; make it a multiple of both."
        )
    return micro, share // micro


def training_arguments(
    config: FineTuneConfig, directory: Path, device: torch.device, dtype: torch.dtype, shuffled: bool = True
) -> TrainingArguments:
    """Make the arguments of a run's trainer, on one GPU for each process.

    Args:
        config: Options of the stage.
        directory: Directory of the run; checkpoints are written into its scratch.
        device: Device to train on.
        dtype: Type of matrix products and of frozen weights.
        shuffled: Shuffle the examples of an epoch, instead of training on them in their order.
    """
    micro, accumulation = split_batch(config)
    validates = config.eval_steps is not None
    with without_renaming_warning():
        arguments = TrainingArguments(
            output_dir=str(directory / SCRATCH / "trainer"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="random" if shuffled else "sequential",
            learning_rate=config.learning_rate,
            num_train_epochs=config.epochs,
            max_steps=config.max_steps or -1,  # the Trainer would take one step for 0
            lr_scheduler_type=config.scheduler,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
            bf16=dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            gradient_checkpointing=config.gradient_checkpointing,
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,  # it hides a loss that is no number, and waits for the device at each step
            # Every validation has a checkpoint, without which the best step could not be loaded.
            save_steps=config.save_steps if config.eval_steps is None else config.eval_steps,
            save_total_limit=KEPT + validates,
            eval_strategy="steps" if validates else "no",
            eval_steps=config.eval_steps,
            metric_for_best_model=NDCG if validates else None,
            greater_is_better=True if validates else None,
            load_best_model_at_end=validates,
            restore_callback_states_from_checkpoint=validates,  # how long EarlyStoppingCallback has been waiting
            report_to=config.report_to or "none",
            seed=config.seed,
            remove_unused_columns=False,
            use_cache=True,  # in the saved config: training does not use the cache, but decoding without it is slow
            disable_tqdm=True,  # its bars print every log entry as a dict; `TrainingBar` shows one instead
            dataloader_pin_memory=device.type == "cuda",
            accelerator_config={"non_blocking": device.type == "cuda"},
        )
    use_one_gpu(arguments, config)
    return arguments


def use_one_gpu(arguments: TrainingArguments, config: FineTuneConfig) -> None:
    """Keep a single process to the first of several GPUs.

    The Trainer would wrap the model in nn.DataParallel, whose replicas bypass the loss in the model's own forward;
    `accelerate launch` is the way to use more GPUs.
    """
    if arguments.n_gpu > 1:
        how = "" if config.one_process else f"; `accelerate launch scripts/{config.stage}.py` uses all"
        say(f"{config.stage}: {arguments.n_gpu} GPUs are visible and one is used{how}.")
        arguments._n_gpu = 1
