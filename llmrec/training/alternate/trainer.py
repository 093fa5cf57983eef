"""The trainer of alternating training: that of `llmrec sft`, with semantic IDs that may change between two steps.

Batches are made when a step begins, and not by the data loader: accelerate draws one batch ahead, whose tokens would be
of the semantic IDs from before a change.

Source: ETEGRec (arXiv:2409.05546).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmrec.training.alternate.turns import Turns
from llmrec.training.sft.examples import Example
from llmrec.training.trainer import SidTrainer

FILE = "alternation.pt"  # of a checkpoint: the state of the turns


class AlternateTrainer(SidTrainer):
    """SidTrainer that gives the tokenizer its turns.

    Args:
        turns: Turns of the run.
        adapter_learning_rate: Peak learning rate of the adapters; None if they do not train.
        options: Arguments of SidTrainer; the collator is that of `turns`.
    """

    def __init__(
        self,
        turns: Turns,
        adapter_learning_rate: float | None,
        **options: Any,  # of as many types as SidTrainer has arguments
    ):
        self.turns, self.adapter_learning_rate = turns, adapter_learning_rate
        super().__init__(**{**options, "data_collator": keep_examples})
        self.add_callback(TurnsCallback(turns))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Add the adapters to the optimiser of the LLM."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.adapter_learning_rate is not None:
            adapters = list(self.turns.reader.adapters.parameters())
            optimizer.add_param_group({"params": adapters, "lr": self.adapter_learning_rate})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Make the schedule of the whole run, which is read at the place that the turns give a step."""
        is_new = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        assert isinstance(scheduler, LambdaLR), "as the schedule of `llmrec sft` is by default"
        if is_new:
            scheduler.lr_lambdas = [self._read_at_place(share) for share in scheduler.lr_lambdas]
        return scheduler

    def _read_at_place(self, share: Callable[[Any], float]) -> Callable[[int], float]:  # torch types steps as int
        return lambda step: share(self.turns.progress.place_of(step))

    def _restart(self) -> None:
        """Forget the moments of the optimiser, and set its learning rates to the beginning of the schedule."""
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        assert optimizer is not None and scheduler is not None, "the Trainer makes both before the first step"
        optimizer.state.clear()
        rates = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, peak, share in rates:
            group["lr"] = peak * share(scheduler.last_epoch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, list[Example]]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, object]], Tensor | int | None]:
        """Begin a step, and make its batches with the semantic IDs that it trains on."""
        assert self.optimizer is not None, "the Trainer makes its optimiser before the first step"
        step = self.state.global_step + 1
        entry = self.turns.begin_step(step, self.optimizer)
        if entry is not None:
            self.log(entry)
            if self.turns.progress.restarted_after == step - 1:
                self._restart()
        drawn, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        with_pools = self.turns.progress.needs_pools_at(step)
        batches = [self.turns.reader.collator.batch(each["examples"], with_pools) for each in drawn]
        return batches, self._get_num_items_in_batch(batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a loss the alignment losses of the same steps."""
        super().log({**logs, **self.turns.read_losses()} if "loss" in logs else logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        torch.save(self.turns.state_dict(), Path(output_dir) / FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_turns(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_metric and self.state.best_model_checkpoint is not None:
            self._load_turns(self.state.best_model_checkpoint)  # the best weights belong to semantic IDs of their own

    def _load_turns(self, checkpoint: str) -> None:
        device = self.turns.training.tokenizer.points.device
        self.turns.load_state_dict(torch.load(Path(checkpoint) / FILE, map_location=device, weights_only=True))


class TurnsCallback(TrainerCallback):
    """Handles the adapters and the tokenizer at each step of the LLM.

    Args:
        turns: Turns of the run.
    """

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Hold the Trainer to the number of steps in the schedule."""
        planned = self.turns.progress.schedule.steps
        assert state.max_steps == planned, f"transformers counts {state.max_steps} steps, and the schedule {planned}"

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Clip the gradients of the adapters, which are not part of the model."""
        self.turns.clip_adapters()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Let the tokenizer take its step in joint training."""
        self.turns.step_jointly()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Clear the gradients of the adapters, which the Trainer does not know."""
        self.turns.reader.adapters.zero_grad()


def keep_examples(examples: list[Example]) -> dict[str, list[Example]]:
    """Data collator that hands examples on; the trainer makes a batch of them when their step begins."""
    return {"examples": examples}
