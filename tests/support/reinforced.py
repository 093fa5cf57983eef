"""Runs of grpo on the toy catalogue, and what they leave in their log."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

from llmrec.configs import GrpoConfig
from llmrec.stages import grpo
from llmrec.training.grpo.trainer import SidGRPOTrainer
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward

STEPS = {"max_steps": 3, "batch_size": 6, "micro_batch_size": 3, "num_generations": 4, "lora_rank": 4, "seed": 0,
         "learning_rate": 5e-3, "warmup_steps": 0, "logging_steps": 1, "save_steps": 1000,
         "device": "cpu"}  # fmt: skip


def reinforce(out: Path, catalog: str, model: Path, functions=(), **options) -> dict:
    """Three optimiser steps of six prompts with four roll-outs each, unless told otherwise."""
    config = GrpoConfig(out=str(out), catalog=catalog, model=str(model), **{**STEPS, **options})
    return grpo.main(config, functions)


def log_of(out: Path) -> list[dict]:
    return json.loads((out / "training_log.json").read_text())


def curve(out: Path, key: str = "loss") -> list[float]:
    """Values of a key of the log, in its order."""
    return [entry[key] for entry in log_of(out) if key in entry]


def scored(trainer: SidGRPOTrainer) -> AbstractContextManager[None]:
    """Context in which the policy of a trainer scores completions, as the stage opens it."""
    sampler = trainer.sampler
    return sibling_scores_in_forward(trainer.policy, sampler.vocabulary, sampler.trie, "children")
