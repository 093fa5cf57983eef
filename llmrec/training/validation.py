"""The valid rows, ranked while a model trains: by them the best step is chosen, and training stops early.

They are ranked as `llmrec evaluate --split valid` ranks them (column `plain`): the same decoder, beam, prompt and
metric, on the model as it trains, LoRA beside its base and under the autocast of training. A loss would be cheaper, but
it is not what the model is used for, and it may fall while fewer targets are found. The Trainer does the rest
(`eval_strategy`, `load_best_model_at_end`, `EarlyStoppingCallback`).

No random number is drawn, and every module is left in the mode it was in, so training goes on as if it had not been
interrupted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llmrec.configs import FineTuneConfig
from llmrec.data.examples import Examples
from llmrec.decoding.ranker import SidRanker
from llmrec.evaluation.learning import CUTOFF, NDCG, RECALL, SECONDS, SUPERVISED, VALIDATION_SECONDS
from llmrec.evaluation.metrics import ndcg, recall
from llmrec.evaluation.protocol import COLUMNS, evaluate
from llmrec.model.checkpoint import SidConfig
from llmrec.runtime.console import say
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable

KEPT = 3  # checkpoints: the best one, and the two newest as without evaluation


def saving(config: FineTuneConfig) -> JsonObject:
    """Arguments of the Trainer for checkpoints and evaluations; with the latter, each has a checkpoint."""
    if config.eval_steps is None:
        return {"save_steps": config.save_steps, "save_total_limit": 2}
    return {
        "save_steps": config.eval_steps,  # without a checkpoint of its own the best step could not be loaded
        "save_total_limit": KEPT,
        "eval_strategy": "steps",
        "eval_steps": config.eval_steps,
        "metric_for_best_model": NDCG,
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": True,  # how long EarlyStoppingCallback has been waiting
    }


def chosen(state: TrainerState) -> JsonObject:
    """For the manifest's counts: the best step, its ndcg and the step whose weights are saved; empty without any.

    Where no target was found at any step, none is the best, and the weights of the last one are saved. Where the start
    was judged too and no step was better, 0 is the best step.
    """
    if state.best_metric is None:
        return {}
    if start_is_best(state):
        return {"best_step": 0, f"valid_ndcg@{CUTOFF}": state.best_metric, "saved_step": 0}
    best = state.best_global_step if state.best_metric > 0 else None
    return {"best_step": best, f"valid_ndcg@{CUTOFF}": state.best_metric, "saved_step": best or state.global_step}


def tell_chosen(stage: str, counts: JsonObject) -> None:
    """Say which weights were saved and why, where steps were judged.

    Args:
        stage: As the message begins.
        counts: Of the manifest, with those of `chosen`.
    """
    if counts.get("best_step") is None:
        return
    ndcg = f"valid ndcg@{CUTOFF} {counts[f'valid_ndcg@{CUTOFF}']:.4f}"
    if counts["saved_step"] == 0:
        say(f"{stage}: no step ranks the valid rows better than the start ({ndcg}): its weights are saved as they were")
    else:
        say(f"{stage}: the weights of step {counts['saved_step']} are saved, best {ndcg}")


def start_is_best(state: TrainerState) -> bool:
    """Whether the weights that training began with were judged, and no step ranks the valid rows better."""
    was_judged = any(NDCG in entry and entry["step"] == 0 for entry in state.log_history)
    return was_judged and not state.best_global_step


def ranker_of_training(
    model: nn.Module, table: SidTable, sid_config: SidConfig, prefix_ids: Sequence[int]
) -> SidRanker:
    """Ranker on the weights of a model that goes on training; arguments as `SidRanker` takes them.

    Without CUDA graphs: autocast would have them read its copies of the weights, made before the next step.
    """
    return SidRanker(model, table, sid_config, prefix_ids, capture=False)


class Validation(TrainerCallback):
    """Valid rows, and the ranker that answers for the model as it stands.

    Args:
        rows: Rows to rank.
        table: Semantic IDs of the catalogue.
        sid_config: Vocabulary, history length and scoring of the model that trains.
        prefix_ids: Tokens before every history.
        targets: Items that one epoch trains on.
        batch_size: Rows decoded together on one device.
        stage: As messages name it.
        from_start: Judge the weights that training begins with too; a step has to be better than they are to be saved.
    """

    def __init__(
        self,
        rows: Examples,
        table: SidTable,
        sid_config: SidConfig,
        prefix_ids: Sequence[int],
        targets: int,
        batch_size: int,
        stage: str,
        from_start: bool = False,
    ):
        self.rows, self.table, self.sid_config, self.prefix_ids = rows, table, sid_config, prefix_ids
        self.targets, self.batch_size, self.stage, self.from_start = targets, batch_size, stage, from_start
        self.ranker: SidRanker | None = None

    def use(self, table: SidTable) -> None:
        """Rank by other semantic IDs from now on."""
        self.table = table
        if self.ranker is not None:
            self.ranker = self._ranker(self.ranker.model)

    def _ranker(self, model: nn.Module) -> SidRanker:
        return ranker_of_training(model, self.table, self.sid_config, self.prefix_ids)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Start the clock where a resumed run had stopped it, on the device that the Trainer has moved the model to."""
        self.ranker = self._ranker(model)
        self.started = time.monotonic() - max((entry.get(SECONDS, 0.0) for entry in state.log_history), default=0.0)
        if state.best_global_step:  # by its number: the directory may have been moved since
            best = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            state.best_model_checkpoint = str(best)
        if self.from_start and state.global_step == 0:
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
                found = self.judge(state)
            state.log_history.append({**found, "epoch": 0.0, "step": 0})
            state.best_metric = found[NDCG]

    def judge(self, state: TrainerState) -> dict[str, float]:
        """Rank the rows; the same values in every process, but for the seconds.

        Args:
            state: Of the Trainer, which has not compared this step to the best one yet.

        Returns:
            Keys of `llmrec.evaluation.learning`. Within an epoch items trained on are taken by its share of the steps.
        """
        label = f"{self.stage}: step {state.global_step} of {state.max_steps}, valid"
        rank = self.ranker.rank_batches
        with evaluation_mode(self.ranker.model):
            outcome = evaluate(rank, self.rows, CUTOFF, COLUMNS[0], self.batch_size, f"{label} rows")
        found = {
            NDCG: float(ndcg(outcome.position, CUTOFF).mean()),
            RECALL: float(recall(outcome.position, CUTOFF).mean()),
        }
        is_best = found[NDCG] > (state.best_metric or 0.0)
        note = ", the best so far" if is_best else ""
        say(f"{label} ndcg@{CUTOFF} {found[NDCG]:.4f}, recall@{CUTOFF} {found[RECALL]:.4f}{note}")
        return {
            **found,
            SUPERVISED: round(self.targets * (state.epoch or 0)),
            SECONDS: time.monotonic() - self.started,
            VALIDATION_SECONDS: outcome.seconds,
        }


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """While open, no dropout; afterwards every module is in the mode it was in.

    4-bit layers, which drop nothing out, stay in theirs: for inference on a CPU bitsandbytes lays their weights out
    anew, from which there is no way back to training.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, was_training in modes:
        module.training = was_training and type(module).__module__.startswith("bitsandbytes")
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
