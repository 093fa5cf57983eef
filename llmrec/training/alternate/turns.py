"""Alternating training: the LLM and the item tokenizer take turns.

After every `cycle_steps` optimiser steps of the LLM, the tokenizer has a pass: it trains on the targets of training
sequences while the LLM is frozen, in evaluation mode and with the semantic IDs from before. Then all items are encoded
again, token rows follow their codes (swap_table.py), and collator and validation use the new table. Before
`align_after` nothing is aligned. After `freeze_after`, or as soon as the semantic IDs hardly change, the tokenizer is
frozen and the LLM trains on cross-entropy only, with a new optimiser at the peak of its rate.

Source: ETEGRec (arXiv:2409.05546), section 2.4. Departures: cycles count steps, as an LLM trains for few epochs; the
LLM keeps the weights that it has when the tokenizer is frozen, where the paper loads the best pair of both; turns end
at a share of the steps or by a small churn, where the paper waits for the validation metric.

Shapes: R rows of a batch, T tokens, H hidden.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypedDict

import torch
from datasets import Dataset
from torch import Tensor

from llmrec.model.backbone import evaluation_mode
from llmrec.runtime.console import say
from llmrec.training.alternate.alignment import Alignment, Losses, mean_losses
from llmrec.training.alternate.current_sids import CurrentSids
from llmrec.training.alternate.pools import Pools
from llmrec.training.alternate.reader import HistoryReader
from llmrec.training.alternate.retokenize import code_metrics
from llmrec.training.alternate.schedule import Progress
from llmrec.training.alternate.tokenizer_training import TokenizerTraining, clip_gradients, pass_examples
from llmrec.training.checkpoints import corruption, numbered


class TurnsState(TypedDict):
    """Content of alternation.pt: everything of a run that belongs to neither the LLM nor its optimiser."""

    tokenizer: dict[str, Tensor]
    optimizer: dict[str, object]
    scheduler: dict[str, object]
    adapters: dict[str, Tensor]
    codebooks: list[Tensor]
    codes: Tensor
    cycle: int
    settled: int
    is_frozen: bool
    losses: Tensor


class Turns:
    """Tokenizer, adapters and semantic IDs of a run, and the turns of the tokenizer.

    Args:
        progress: Cycles so far, and the schedule.
        training: Training of the tokenizer.
        alignment: Losses of the alignment.
        reader: LLM with its adapters and collator.
        sids: Semantic IDs of the moment.
        examples: Examples of an epoch.
        batch_size: Examples of a step of the tokenizer.
        seed: Seed of the run.
        checkpoints: Directory of the Trainer's checkpoints, for messages.
    """

    def __init__(
        self,
        progress: Progress,
        training: TokenizerTraining,
        alignment: Alignment,
        reader: HistoryReader,
        sids: CurrentSids,
        examples: Dataset,
        batch_size: int,
        seed: int,
        checkpoints: Path,
    ):
        self.progress, self.training, self.alignment, self.reader = progress, training, alignment, reader
        self.sids, self.examples, self.batch_size, self.seed = sids, examples, batch_size, seed
        self.checkpoints, self.step = checkpoints, 0
        self._losses: list[Losses] = []

    def begin_step(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, float] | None:
        """Begin an optimiser step of the LLM, after the tokenizer's turn if a cycle has ended.

        The step before was validated and saved with the semantic IDs that it was trained on.

        Args:
            step: Number of the step, from 1.
            optimizer: Optimiser of the LLM.

        Returns:
            Log entry of the cycle that has ended, or None.

        Raises:
            ValueError: If the tokenizer has diverged or collapsed.
        """
        self.step, done = step, step - 1
        if not self.progress.ends_cycle(done):
            return None
        started = time.monotonic()
        losses = {} if self.progress.schedule.is_joint else self._run_pass(self.progress.aligns_at(done))
        churn = self._renew(done, optimizer)
        self.progress.count_cycle(done, churn)
        if self.progress.is_frozen:
            self.training.enable(False)
        cycle, metrics = self.progress.cycle, code_metrics(self.sids.codes()[:, :-1])
        note = ", and the tokenizer is frozen from here on" if self.progress.is_frozen else ""
        note += "; the optimiser of the LLM starts anew" if self.progress.restarted_after else ""
        say(
            f"alternate: step {done} of {self.progress.schedule.steps}, cycle {cycle}: {churn:.2%} of the items have "
            f"another semantic ID, {metrics['unique_per_item']:.4f} tuples per item{note} "
            f"({time.monotonic() - started:.1f} s)"
        )
        return {"cycle": cycle, "churn": churn, **losses, **metrics}

    def loss(self, states_RTH: Tensor, pools: dict[str, Tensor]) -> Tensor:
        """Compute what is added to the cross-entropy of a batch that has pools.

        Args:
            states_RTH: (R, T, H) last hidden states of the batch.
            pools: Fields of `Pools`.
        """
        places = Pools(**pools)
        vectors = self.reader.adapters(states_RTH, places) if self.progress.aligns_at(self.step) else None
        with torch.autocast(states_RTH.device.type, enabled=False):
            losses = self.alignment.losses(places.targets, vectors)
        self._losses.append(losses.detach())
        own = losses.own if self.progress.trains_jointly else 0.0
        return own + self.alignment.weighted(losses)

    def read_losses(self) -> dict[str, float]:
        """Mean alignment losses of the LLM's steps since the last reading."""
        means, self._losses = mean_losses(self._losses), []
        return {name: means[name] for name in ("sia", "psa") if name in means}

    def clip_adapters(self) -> None:
        """Clip the gradients of the adapters, which the LLM's optimiser trains."""
        clip_gradients(self.reader.adapters)

    def step_jointly(self) -> None:
        """Take an optimiser step of the tokenizer too, if it trains at the steps of the LLM."""
        if self.progress.trains_jointly:
            self.training.step()

    def _run_pass(self, aligned: bool) -> dict[str, float]:
        plan = self.progress.schedule
        batches = pass_examples(self.examples, self.batch_size, plan.pass_steps, (self.seed, self.progress.cycle))
        with evaluation_mode(self.reader.model):
            return self.training.run_pass(
                self.alignment, (self.reader.read(examples, with_vectors=aligned) for examples in batches)
            )

    def _renew(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        """Give the items their new semantic IDs, and return the churn."""
        seed = self.seed + self.progress.cycle + 1  # of rows whose code is new
        try:
            return self.sids.renew(self.training.tokenizer, self.reader.model, optimizer, seed)
        except ValueError as error:
            whole = next((path for path in numbered(self.checkpoints) if corruption(path) is None), None)
            kept = f"The last whole checkpoint is {whole}." if whole else "There is no checkpoint from before."
            raise ValueError(
                f"Step {step}: {error} {kept} Lower tokenizer_learning_rate, sia_weight, psa_weight or freeze_after, "
                "and run again with --overwrite."
            ) from error

    def state_dict(self) -> TurnsState:
        """Collect the state of the turns for a checkpoint."""
        return {
            "tokenizer": self.training.tokenizer.state_dict(),
            "optimizer": self.training.optimizer.state_dict(),
            "scheduler": self.training.scheduler.state_dict(),
            "adapters": self.reader.adapters.state_dict(),
            "codebooks": self.sids.codebooks,
            "codes": torch.from_numpy(self.sids.codes()),
            "cycle": self.progress.cycle,
            "settled": self.progress.settled,
            "is_frozen": self.progress.is_frozen,
            "losses": torch.stack([torch.stack(losses) for losses in self._losses]) if self._losses else torch.empty(0),
        }

    def load_state_dict(self, state: TurnsState) -> None:
        """Return to a state of `state_dict`, on the device of the tokenizer."""
        self.training.tokenizer.load_state_dict(state["tokenizer"])
        self.training.optimizer.load_state_dict(state["optimizer"])
        self.training.scheduler.load_state_dict(state["scheduler"])
        self.reader.adapters.load_state_dict(state["adapters"])
        self.sids.restore(state["codes"].cpu().numpy(), state["codebooks"])
        self.progress.cycle, self.progress.settled = state["cycle"], state["settled"]
        self.progress.is_frozen = state["is_frozen"]
        self._losses = [Losses(*losses) for losses in state["losses"]]
        self.training.enable(self.progress.trains_jointly)
