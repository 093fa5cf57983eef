"""Choices that spoil a run without an error: each gives one line that says what happens, and the remedy.

On Amazon Beauty (recipes/beauty-smollm2-135m), `dropout` .1 took a third of the NDCG of SmolLM2-135M, which had been
pretrained without dropout. There, patience ended every run of the small decoder without dropout after 15 to 24 of 40
epochs of a cosine, at 69 to 35 % of the peak learning rate: the gain of dropout is mixed with that of the decay.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import EarlyStoppingCallback, Trainer

from llmrec.configs import FineTuneConfig, SftConfig
from llmrec.model.origin import base_is_random
from llmrec.runtime.manifest import JsonObject

STOPPED_AT = "stopped_at_rate"  # among the counts of the manifest
HIGH_RATE = 0.2  # share of the peak; a cosine falls below it in the last 30 % of a run
DECAYING = ("linear", "cosine")  # schedules that are cut off if a run stops early
FROZEN = {"lora": "LoRA and the embeddings of the SID tokens", "sid_tokens": "the embeddings of the SID tokens"}


def warnings_of(config: SftConfig, details: JsonObject, phases: Sequence[JsonObject]) -> list[str]:
    """List what a config does to weights of the origin that a checkpoint has.

    Args:
        config: Options of sft, or those of the LLM's steps of alternate.
        details: Facts in the llmrec.json of the checkpoint.
        phases: Recipe and counts of every run that trained it, oldest first.
    """
    found, is_random = [], base_is_random(details)
    in_full = any(recipe.get("train") == "full" for phase in phases for recipe in phase.values())
    if config.dropout and not is_random:
        found.append(
            f"dropout is {config.dropout} on pretrained weights: a model that was pretrained without dropout does not "
            "recover from it (SmolLM2-135M lost a third of its ndcg@10 at 0.1). Set dropout to 0; label_smoothing, "
            "weight_decay and fewer epochs regularise too."
        )
    if config.train in FROZEN and is_random and not in_full:
        found.append(
            f"train is '{config.train}' and the base has random weights: all but {FROZEN[config.train]} stays random. "
            "Set train to full, or extend a pretrained model."
        )
    return found


def rate_at_stop(trainer: Trainer) -> float | None:
    """Return the share of the peak learning rate at which patience ended a run; None if it ran to its end."""
    waiting = [each for each in trainer.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
    if not any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in waiting):
        return None
    if trainer.optimizer is None or trainer.state.global_step >= trainer.state.max_steps:
        return None
    group = trainer.optimizer.param_groups[0]
    return round(group["lr"] / group["initial_lr"], 3)


def warning_of_rate(config: FineTuneConfig, share: float | None, steps: int) -> str | None:
    """Say that patience cut the schedule of the learning rate off, if it did.

    Args:
        config: Options of the stage.
        share: Result of `rate_at_stop`.
        steps: Optimiser steps of the run.
    """
    if share is None or share <= HIGH_RATE or config.scheduler not in DECAYING:
        return None
    return (
        f"patience ended the run at {share:.0%} of the peak learning rate, before the schedule had lowered it. Run "
        f"again with max_steps {steps} or fewer epochs, so that the schedule ends where the run does, or with a larger "
        "patience."
    )
