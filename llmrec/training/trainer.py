"""The trainer of all stages that train the LLM: optimiser, validation, whole checkpoints, log lines and resuming.

Each stage uses `SidTrainer`, or a subclass that computes its loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
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
from transformers.trainer_utils import TrainOutput

from llmrec.configs import FineTuneConfig
from llmrec.evaluation.learning import VALIDATION_SECONDS
from llmrec.model.checkpoint import load_model
from llmrec.model.heads.own_files import CONTENT_ROWS
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.manifest import JsonObject, read_json, write_json
from llmrec.runtime.quiet import without_tensor_bars
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.training.callbacks import Divergence, LogLines, TrainingBar
from llmrec.training.checkpoints import check_best, check_sharding, newest_whole, saved_whole
from llmrec.training.preference.averages import Averages
from llmrec.training.regime import STOPPED_AT, rate_at_stop, warning_of_rate
from llmrec.training.validation import Validation

LOSSES = "llmrec_losses_{}.json"  # of each process, in a checkpoint
SID_ROWS = "trainable_tokens"  # in the name of PEFT's parameter for trained token rows
ROWS = (SID_ROWS, f"{CONTENT_ROWS}.modules_to_save")  # in the names of all rows that train alone


class SidTrainer(Trainer):
    """transformers' Trainer with checkpoints that are complete or absent, and with validation by ranking.

    The loss is the one that the model's `forward` returns, unless a subclass overrides `compute_loss`.

    Args:
        config: Options of the stage.
        model: Model to train, with its LoRA if it has one.
        args: Arguments of transformers' Trainer, as `training_arguments` makes them.
        train_dataset: Training examples.
        processing_class: Tokenizer, which is saved with every checkpoint.
        data_collator: Function that makes a batch of examples.
        callbacks: Callbacks of the stage.
        validation: Validation examples and their ranker; without it nothing is validated.

    Attributes:
        shown: Names of the logged values that are printed where there is no terminal.
    """

    model: PreTrainedModel | PeftModel
    train_dataset: Dataset
    shown: tuple[str, ...] = ("loss",)
    averages: Averages | None = None  # of the stages that log more than a loss

    def __init__(
        self,
        config: FineTuneConfig,
        *,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        data_collator: Callable[[list[Any]], dict[str, Any]],  # as transformers types collators
        callbacks: Sequence[TrainerCallback] = (),
        validation: Validation | None = None,
    ):
        self.config, self.validation, self.training_bar = config, validation, TrainingBar(config.stage)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            # `evaluate` ranks the examples of `validation`; transformers wants a dataset all the same.
            eval_dataset=None if validation is None else Dataset.from_dict({}),
            processing_class=processing_class,
            data_collator=data_collator,
            callbacks=[
                *callbacks,
                *([] if validation is None else [validation]),
                Divergence(config.stage),
                LogLines(config.stage, self.shown),
                self.training_bar,
                *([EarlyStoppingCallback(config.patience)] if config.patience else []),
            ],
        )
        self.remove_callback(PrinterCallback)  # it prints to stdout, which `--json` keeps for the result

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser when training starts: under FSDP the Trainer takes none that was made before."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            self.optimizer = build_optimizer(trained, self.config, fused=self.args.device.type == "cuda")
        return self.optimizer

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rank the validation examples instead of computing a loss; the Trainer calls this without arguments."""
        assert self.validation is not None, "the Trainer evaluates only where eval_steps is set"
        with self.accelerator.autocast():
            metrics = self.validation.validate(self.state)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def gather_weights(self) -> PreTrainedModel | PeftModel:
        """Return the trained model, with all of its weights in the first process; every process must call this."""
        if processes.sharding() is None:
            return self.model
        gathered = self.accelerator.get_state_dict(self.model_wrapped)  # empty except in the first process
        if not processes.is_main():
            return self.model
        model = load_model(self.config.model, dtype=torch.float32)
        model.load_state_dict(gathered)
        return model

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> TrainOutput:
        """Train, from a checkpoint if one is given; the sums of its losses go on. The bar vanishes whatever happens."""
        if isinstance(resume_from_checkpoint, str):
            self.add_callback(EarlierLosses(self, Path(resume_from_checkpoint)))
        with contextlib.closing(self.training_bar):
            return super().train(resume_from_checkpoint, *arguments, **options)

    def _save_checkpoint(self, model: torch.nn.Module, trial: dict[str, object] | None) -> None:
        # The Trainer starts its sums of losses anew when it resumes: every mean would be of the steps since then.
        sums: JsonObject = {
            "since_log": self._tr_loss.item(),
            "before_log": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
            "averages": None if self.averages is None else self.averages.state(),
        }
        with saved_whole(self.args, self.state) as aside:
            super()._save_checkpoint(model, trial)
            aside.mkdir(parents=True, exist_ok=True)  # the first process may not have made it yet
            write_json(aside / LOSSES.format(processes.rank()), sums)

    def continue_sums(self, sums: JsonObject) -> None:
        """Take up the sums of a checkpoint, so that means are of all steps; call it as training begins."""
        self._tr_loss += sums["since_log"]
        self._total_loss_scalar = sums["before_log"]
        self._globalstep_last_logged = int(sums["logged_at"])
        if self.averages is not None:
            self.averages.restore(sums["averages"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an entry; the mean loss of the whole training, which the last one has, is of all steps."""
        if "train_loss" in logs:  # transformers divides by the steps of this call
            logs = logs | {"train_loss": self._total_loss_scalar / max(self.state.global_step, 1)}
        super().log(logs, start_time)

    def _load_best_model(self) -> None:
        if not self.state.best_metric:
            say(
                f"{self.config.stage}: no target was found at any step, so none is the best: the weights of the last "
                "one are saved."
            )
            return
        check_best(self.state)
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:  # what torch's load_state_dict returns
        """Warn of missing weights, except tied ones, which a checkpoint holds once and transformers 5.23 misses."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "all_tied_weights_keys", None) or {})
        if missing or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)


class EarlierLosses(TrainerCallback):
    """Gives a trainer that resumes the sums of the losses before its checkpoint.

    Args:
        trainer: Trainer that resumes.
        checkpoint: Checkpoint that it resumes from.
    """

    def __init__(self, trainer: SidTrainer, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Read the sums, those of all processes if there were more or fewer; an earlier version wrote none."""
        number = len(list(self.checkpoint.glob(LOSSES.format("*"))))
        sums = [read_json(self.checkpoint / LOSSES.format(rank)) for rank in range(number)]
        if number == processes.count():
            self.trainer.continue_sums(sums[processes.rank()])
        elif sums:
            self.trainer.continue_sums(dealt_anew(sums, processes.is_main()))


def dealt_anew(sums: Sequence[JsonObject], is_main: bool) -> JsonObject:
    """Sums for a process of a run that had another number of processes.

    Args:
        sums: What each of the processes of before has saved.
        is_main: Whether they are for the first process, which takes the averages; losses are means over processes.
    """
    means = {name: sum(each[name] for each in sums) / len(sums) for name in ("since_log", "before_log", "logged_at")}
    if sums[0]["averages"] is None:
        return {**means, "averages": None}
    averages = {}
    for name in sums[0]["averages"]:
        of_batches = zip(*(each["averages"][name] for each in sums), strict=True)
        added = [[sum(column) for column in zip(*parts, strict=True)] for parts in of_batches]
        averages[name] = added if is_main else [[0.0, 0.0] for _ in added]
    return {**means, "averages": averages}


def train(trainer: SidTrainer, directory: Path) -> tuple[JsonObject, float]:
    """Train to the end, from the newest whole checkpoint if there is one.

    Args:
        trainer: Trainer of the run.
        directory: Directory of the run.

    Returns:
        Counts for the manifest, and the epochs per second of this call, without validation.
    """
    newest = newest_whole(directory / SCRATCH / "trainer")
    if newest is not None:
        check_sharding(newest)
        say(f"{trainer.config.stage}: continuing from {newest.name}")
    done = int(newest.name.rsplit("-", 1)[1]) if newest else 0
    with without_tensor_bars():
        result = trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    state, validated_before = trainer.state, done if newest else -1
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if not losses:  # a run shorter than logging_steps; transformers gives the loss of this process
        shares = processes.gather([result.training_loss * (state.global_step - done)])
        losses = [sum(shares) / len(shares) / state.global_step]
    validating = [
        e[VALIDATION_SECONDS] for e in state.log_history if VALIDATION_SECONDS in e and e["step"] > validated_before
    ]
    seconds = result.metrics["train_runtime"] - sum(validating)
    counts: JsonObject = {
        "steps": state.global_step,
        "loss": losses[-1],
        "train_seconds": round(seconds, 1),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
    share = rate_at_stop(trainer)
    if share is not None:
        counts[STOPPED_AT] = share
    warning = warning_of_rate(trainer.config, share, state.global_step)
    if warning:
        say(f"{trainer.config.stage}: {warning}")
    return counts, (state.epoch or 0.0) * (state.global_step - done) / state.global_step / seconds


def build_optimizer(model: torch.nn.Module, config: FineTuneConfig, fused: bool = False) -> torch.optim.Optimizer:
    """Make AdamW; the embeddings of SID tokens, which start from noise, have their own learning rate and no decay.

    Args:
        model: Model whose trainable parameters are optimised.
        config: Options of the stage.
        fused: Update many parameters in one kernel.
    """
    trained = [(any(kind in name for kind in ROWS), p) for name, p in model.named_parameters() if p.requires_grad]
    rows = [p for is_row, p in trained if is_row]
    decayed = [p for is_row, p in trained if not is_row and p.dim() > 1]
    others = [p for is_row, p in trained if not is_row and p.dim() <= 1]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if rows:  # sft and alternate train them, and have the option
        rate = getattr(config, "sid_learning_rate", None) or config.learning_rate
        groups.append({"params": rows, "weight_decay": 0.0, "lr": rate})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=fused)
