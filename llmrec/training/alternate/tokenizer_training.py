"""Training of the item tokenizer within a run: its optimiser, its learning-rate schedule and its passes.

Source: ETEGRec (arXiv:2409.05546), training details: AdamW with decay .05, gradients clipped at 1, a cosine schedule;
the warm-up is that of the LLM, shortened to the tokenizer's own steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from llmrec.tokenizers.etegrec import EndToEnd
from llmrec.training.alternate.alignment import Alignment, HistoryVectors, mean_losses
from llmrec.training.sft.examples import Example

WEIGHT_DECAY, MAX_GRAD_NORM, SCHEDULER = 0.05, 1.0, "cosine"


class TokenizerTraining:
    """The tokenizer with its optimiser and learning-rate schedule.

    Args:
        tokenizer: Tokenizer over the vectors of all items, on the device of the LLM.
        learning_rate: Peak learning rate.
        num_steps: Optimiser steps of the tokenizer in the run.
        warmup_steps: Steps of linear warm-up among them.
        trains: True if the tokenizer trains outside of passes.
    """

    def __init__(self, tokenizer: EndToEnd, learning_rate: float, num_steps: int, warmup_steps: int, trains: bool):
        self.tokenizer = tokenizer
        self.optimizer = torch.optim.AdamW(tokenizer.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
        self.scheduler = get_scheduler(SCHEDULER, self.optimizer, warmup_steps, num_steps)
        self.enable(trains)

    def enable(self, trains: bool) -> None:
        """Let the tokenizer train, or freeze it."""
        self.tokenizer.requires_grad_(trains).train(trains)

    def step(self) -> None:
        """Take an optimiser step by the gradients that have been accumulated."""
        clip_gradients(self.tokenizer)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def run_pass(
        self, alignment: Alignment, batches: Iterable[tuple[Tensor, HistoryVectors | None]]
    ) -> dict[str, float]:
        """Train on the targets of batches, one step for each.

        Args:
            alignment: Losses and their weights.
            batches: (U,) distinct targets, and the vectors of the histories before them, if they are aligned.

        Returns:
            Mean losses of the pass.
        """
        self.enable(True)
        seen = []
        for targets_U, vectors in batches:
            losses = alignment.losses(targets_U, vectors)
            if len(targets_U):
                (losses.own + alignment.weighted(losses)).backward()
            self.step()
            seen.append(losses.detach())
        self.enable(False)
        return {f"pass_{name}": value for name, value in mean_losses(seen).items()}


def clip_gradients(module: nn.Module) -> None:
    """Clip the gradients of a module to the norm of ETEGRec."""
    clip_grad_norm_(module.parameters(), MAX_GRAD_NORM)


def pass_examples(examples: Dataset, batch_size: int, num_steps: int, seed: tuple[int, int]) -> Iterator[list[Example]]:
    """Draw the batches of a pass: sequences in random order, and again in another order until there are enough.

    Args:
        examples: Examples of an epoch; those of `fill_last_batch`, which are blank, are left out.
        batch_size: Examples of a batch; the last batch of each order may have fewer.
        num_steps: Number of batches.
        seed: Seeds of the run and of the pass.
    """
    rows = np.flatnonzero([len(each) > 0 for each in examples["rows"]])
    rng, order = np.random.default_rng(seed), rows[:0]
    for _ in range(num_steps):
        order = order if len(order) else rng.permutation(rows)
        chosen, order = order[:batch_size], order[batch_size:]
        yield examples.select(chosen).to_list()
