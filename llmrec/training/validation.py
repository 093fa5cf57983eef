"""Validation while a model trains: the best step is chosen by it, and training stops early by it.

Validation examples are ranked as `llmrec evaluate --split valid` ranks them (column `plain`): with the same decoder,
beam, prompt and metric, on the model as it trains, with its LoRA and under the autocast of training. A loss would be
cheaper, but it is not what the model is used for, and it may fall while fewer targets are found. The Trainer does the
rest (`eval_strategy`, `load_best_model_at_end`, `EarlyStoppingCallback`).

Validation draws no random number and leaves every module in the mode it was in, so training continues as if it had not
been interrupted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llmrec.configs.recommend import RankBy
from llmrec.data.examples import Examples
from llmrec.decoding.ranker import Batch, SidRanker
from llmrec.evaluation.learning import CUTOFF, ITEMS_NDCG, NDCG, RECALL, SECONDS, SUPERVISED, VALIDATION_SECONDS
from llmrec.evaluation.metrics import ndcg, recall
from llmrec.evaluation.protocol import COLUMNS, Outcome, evaluate
from llmrec.evaluation.ranking import UNFILLED, Ranking, ScoresNotFinite
from llmrec.model.backbone import causal_lm, evaluation_mode
from llmrec.model.checkpoint import SidConfig
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable


def best_step(state: TrainerState) -> JsonObject:
    """Describe the best step for the manifest: `best_step`, its ndcg, and `saved_step`, whose weights are saved.

    If no target was found at any step, there is no best one, and the weights of the last one are saved. If the initial
    weights were validated too and no step was better, the best step is 0. Without validation the result is empty.
    """
    if state.best_metric is None:
        return {}
    if start_is_best(state):
        return {"best_step": 0, f"valid_ndcg@{CUTOFF}": state.best_metric, "saved_step": 0}
    best = state.best_global_step if state.best_metric > 0 else None
    return {"best_step": best, f"valid_ndcg@{CUTOFF}": state.best_metric, "saved_step": best or state.global_step}


def tell_best_step(stage: str, counts: JsonObject) -> None:
    """Print which weights were saved and why, if there was validation.

    Args:
        stage: Name of the stage, which begins the message.
        counts: Counts of the manifest, with those of `best_step`.
    """
    if counts.get("best_step") is None:
        return
    ndcg_text = f"valid ndcg@{CUTOFF} {counts[f'valid_ndcg@{CUTOFF}']:.4f}"
    if counts["saved_step"] == 0:
        tell(f"{stage}: validation never improved on the initial weights ({ndcg_text}); they are saved unchanged")
    else:
        tell(f"{stage}: the weights of step {counts['saved_step']} are saved, best {ndcg_text}")


def start_is_best(state: TrainerState) -> bool:
    """Tell whether the initial weights were validated and no step was better."""
    was_validated = any(NDCG in entry and entry["step"] == 0 for entry in state.log_history)
    return was_validated and not state.best_global_step


def ranker_of_training(
    model: nn.Module, table: SidTable, sid_config: SidConfig, prefix_ids: Sequence[int], rank: RankBy = "sid"
) -> SidRanker:
    """Make a ranker on the weights of a model that continues to train, with its LoRA if it has one.

    `SidRanker` explains the arguments. The ranker has no CUDA graphs: under autocast they would read copies of the
    weights that were made before the next step.
    """
    return SidRanker(causal_lm(model), table, sid_config, prefix_ids, capture=False, rank=rank)


class Validation(TrainerCallback):
    """Validation examples, and the ranker on the model that trains.

    Args:
        examples: Validation examples to rank.
        table: Semantic IDs of the catalogue.
        sid_config: Vocabulary, history length and scoring of the model that trains.
        prefix_ids: Token ids before every history.
        targets: Number of targets that one epoch trains on.
        batch_size: Examples decoded together on one device.
        stage: Name of the stage, for messages.
        from_start: Validate the initial weights too; a step must be better than they are to be saved.
    """

    def __init__(
        self,
        examples: Examples,
        table: SidTable,
        sid_config: SidConfig,
        prefix_ids: Sequence[int],
        targets: int,
        batch_size: int,
        stage: str,
        from_start: bool = False,
    ):
        self.examples, self.table, self.sid_config, self.prefix_ids = examples, table, sid_config, prefix_ids
        self.targets, self.batch_size, self.stage, self.from_start = targets, batch_size, stage, from_start
        self.started = time.monotonic()
        self._ranker: SidRanker | None = None
        self._by_items: SidRanker | None = None  # of a model with item rows

    @property
    def ranker(self) -> SidRanker:
        """The ranker on the model that trains; there is one as soon as training begins."""
        assert self._ranker is not None, "validation begins with training"
        return self._ranker

    def ranker_by(self, rank: RankBy) -> SidRanker:
        """Make another ranker on the model that trains, which ranks by `sid`, `items` or `mixture`."""
        return ranker_of_training(self.ranker.model, self.table, self.sid_config, self.prefix_ids, rank)

    def use(self, table: SidTable) -> None:
        """Rank by other semantic IDs from now on."""
        self.table = table
        if self._ranker is not None:
            self._make_rankers(self._ranker.model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # objects of the Trainer, among them its model
    ) -> None:
        """Make the ranker, on the device that the model was moved to, and continue the clock of a resumed run."""
        self._make_rankers(kwargs["model"])
        self.started = time.monotonic() - max((entry.get(SECONDS, 0.0) for entry in state.log_history), default=0.0)
        if state.best_global_step:  # by its number: the directory may have been moved since
            best = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            state.best_model_checkpoint = str(best)
        if self.from_start and state.global_step == 0:
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
                metrics = self.validate(state)
            state.log_history.append({**metrics, "epoch": 0.0, "step": 0})
            state.best_metric = metrics[NDCG]

    def validate(self, state: TrainerState) -> dict[str, float]:
        """Rank the validation examples.

        Args:
            state: State of the Trainer, which has not compared this step with the best one yet.

        Returns:
            Metrics under the keys of `llmrec.evaluation.learning`, equal in every process except for the seconds. Those
            by item rows are left out for a model without them.
            Within an epoch, the number of targets trained on is estimated from the share of the steps.
        """
        label = f"{self.stage}: step {state.global_step} of {state.max_steps}, valid"
        with evaluation_mode(self.ranker.model):
            outcome = self._ranked(self.ranker, f"{label} examples")
            by_items = None if self._by_items is None else self._ranked(self._by_items, f"{label} examples by items")
        ndcg_at_k = float(ndcg(outcome.position, CUTOFF).mean())
        recall_at_k = float(recall(outcome.position, CUTOFF).mean())
        note = ", the best so far" if ndcg_at_k > (state.best_metric or 0.0) else ""
        items = {} if by_items is None else {ITEMS_NDCG: float(ndcg(by_items.position, CUTOFF).mean())}
        shown = "".join(f", ndcg@{CUTOFF} by items {value:.4f}" for value in items.values())
        say(f"{label} ndcg@{CUTOFF} {ndcg_at_k:.4f}, recall@{CUTOFF} {recall_at_k:.4f}{note}{shown}")
        return {
            NDCG: ndcg_at_k,
            RECALL: recall_at_k,
            **items,
            SUPERVISED: round(self.targets * (state.epoch or 0)),
            SECONDS: time.monotonic() - self.started,
            VALIDATION_SECONDS: outcome.seconds + (0.0 if by_items is None else by_items.seconds),
        }

    def _make_rankers(self, model: nn.Module) -> None:
        """Make the ranker on a model that trains, and one by its item rows if it has them."""
        self._ranker = ranker_of_training(model, self.table, self.sid_config, self.prefix_ids)
        self._by_items = self.ranker_by("items") if self.sid_config.vocabulary.items is not None else None

    def _ranked(self, ranker: SidRanker, label: str) -> Outcome:
        """Rank the validation examples in the column plain."""
        rank = functools.partial(rank_or_nothing, ranker, label=label)
        return evaluate(rank, self.examples, CUTOFF, COLUMNS[0], self.batch_size, label)


def rank_or_nothing(ranker: SidRanker, batches: Iterable[Batch], k: int, label: str) -> Iterator[Ranking]:
    """Rank batch after batch; from the first whose scores are NaN, answers are empty and all targets are missed.

    A run that has diverged ends at its next log entry and keeps its best step, so validation must not end it. If the
    loss stays finite, the message after `label` is the only sign: the GPU computes wrongly, or an operation of decoding
    overflows that training does not have.
    """
    waiting = list(batches)
    answered = 0
    try:
        for ranking in ranker.rank_batches(waiting, k):
            yield ranking
            answered += 1
    except ScoresNotFinite:
        left = sum(len(histories) for histories, *_ in waiting[answered:])
        say(f"{label}: scores are not finite; the last {left:,} examples count as not found.")
        for histories, *_ in waiting[answered:]:
            empty = np.full((len(histories), k), UNFILLED)
            yield Ranking(empty, np.zeros_like(empty), np.full(empty.shape, -np.inf))
