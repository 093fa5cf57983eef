"""Training of LLM and item tokenizer in turns, on the trainer of `llmrec sft`.

The trainer gives the tokenizer its turn between two steps, makes batches when a step begins, adds the adapters to the
optimiser, and keeps both sides in one checkpoint; the turns themselves are `llmrec.training.alternate.tokenizer_turns`.

Source: ETEGRec (arXiv:2409.05546).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmrec.runtime.manifest import JsonObject
from llmrec.training.alternate.tokenizer_turns import Alternation
from llmrec.training.trainer import SidTrainer


class AlternateTrainer(SidTrainer):
    """SidTrainer whose semantic IDs may change between two steps."""

    def __init__(self, alternation: Alternation, **options: Any):
        self.alternation = alternation
        super().__init__(**options)
        alternation.trainer = self
        self.add_callback(alternation)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """With the adapters, where something is aligned; else it is `llmrec sft`'s."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.config.aligns:
            adapters = list(self.alternation.adapters.parameters())
            optimizer.add_param_group({"params": adapters, "lr": self.config.adapter_learning_rate})
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[JsonObject], num_batches: int, device: torch.device
    ) -> tuple[list[JsonObject], Tensor | int | None]:
        """Batches of the next step, as tokens of its semantic IDs; before it the tokenizer may have its turn."""
        self.alternation.between_steps(self.state.global_step)
        drawn, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pooling = self.alternation.wants_pools_at(self.state.global_step + 1)
        batches = [self.data_collator.batch(each["examples"], pooling) for each in drawn]
        return batches, self._get_num_items_in_batch(batches, device)

    def log(self, logs: JsonObject, start_time: float | None = None) -> None:
        """With the alignment losses of the steps that a loss is the mean of."""
        super().log({**logs, **self.alternation.read_seen()} if "loss" in logs else logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.alternation.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.alternation.load(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_metric > 0:  # semantic IDs and tokenizer of that step
            self.alternation.load(self.state.best_model_checkpoint)
