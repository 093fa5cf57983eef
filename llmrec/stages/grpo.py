"""grpo: reinforce what a fine-tuned checkpoint recommends by rewards of its own roll-outs, and save it merged.

Interrupted at any point, the same command continues from the newest checkpoint that is whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn
from transformers import set_seed

from llmrec.configs import GrpoConfig
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.trie import SidTrie
from llmrec.reports.grpo import render
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.training.grpo.rewards import build_rewards
from llmrec.training.grpo.trainer import make_trainer
from llmrec.training.grpo.user_rewards import OwnReward, UserReward, check_own, own_rewards, sources
from llmrec.training.preference.policy import (
    Prompts,
    check_batch,
    load_policy,
    load_start,
    save_policy,
    training_prompts,
)
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from llmrec.training.start import RunInputs, make_validation
from llmrec.training.trainer import train
from llmrec.training.validation import chosen, ranker_of_training, tell_chosen

PAGE = "training.html"
TRIED = 2  # prompts that a user's reward is tried on


def main(config: GrpoConfig, functions: Sequence[OwnReward] = ()) -> JsonObject:
    """Train and save the merged model.

    Args:
        config: Options.
        functions: Rewards beside those of the config, each of weight 1.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint, the catalogue or a reward are not usable.
    """
    start = load_start(config)
    prompts = training_prompts(start.catalog, config)
    own = own_rewards(config.rewards, functions, start.table.item_ids)
    check(config, start, prompts, own)

    def build(directory: Path) -> JsonObject:
        return reinforce(config, start, prompts, own, directory)

    inputs = {"catalog": config.catalog, "model": config.model, **sources(own)}
    out = run_stage("grpo", config, inputs, build)
    counts = read_manifest(out)["counts"]
    say(f"grpo: {counts['steps']} steps, {counts['prompts_per_second']:,} prompts/s -> {out}")
    tell_chosen(config.stage, counts)
    return {"out": str(out), **counts}


def check(config: GrpoConfig, start: RunInputs, prompts: Prompts, own: Mapping[str, UserReward]) -> None:
    """Refuse what cannot be trained on, before anything is loaded.

    Raises:
        ValueError: With what is at fault and what it may be.
    """
    num_sids = len(np.unique(start.table.all_codes, axis=0))
    if config.rollouts != "sampled" and config.num_generations > num_sids:
        raise ValueError(
            f"num_generations is {config.num_generations}, but the catalogue has {num_sids} semantic IDs and rollouts "
            f"'{config.rollouts}' draws each once; lower it, or use rollouts 'sampled'."
        )
    check_batch(len(prompts), config.batch_size)
    check_own(own, start.table, sequences_of(prompts.take(range(min(TRIED, len(prompts))))), config.num_generations)


def sequences_of(prompts: Prompts) -> list[np.ndarray]:
    """Histories, each with its target behind it."""
    return [np.append(history, target) for history, target in zip(prompts.histories, prompts.targets, strict=True)]


def reinforce(
    config: GrpoConfig, start: RunInputs, prompts: Prompts, own: Mapping[str, UserReward], directory: Path
) -> JsonObject:
    """Train in a directory, or go on where a run ended in it, and save there; counts of the manifest."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    names = list(dict.fromkeys([*config.rewards, *own]))
    weights = [*(config.reward_weights or [1.0] * len(config.rewards)), *[1.0] * (len(names) - len(config.rewards))]
    rewards = build_rewards(names, weights, start.catalog, own, config.seed, config.device)
    validation = make_validation(config, start, len(prompts), from_start=True)
    set_seed(config.seed)
    model, lora = load_policy(config, dtype)
    model.train()  # 4-bit layers on a CPU must not be asked in any other mode, see `evaluation_mode`

    def ranker(model: nn.Module) -> SidRanker:
        return ranker_of_training(model, start.table, start.sid_config, start.prefix)

    trie, vocabulary = SidTrie(start.table), start.sid_config.vocabulary
    with sibling_scores_in_forward(model, vocabulary, trie, config.normalize_over, config.temperature):
        trainer = make_trainer(
            config, model, lora, start.tokenizer, start.table.num_levels, directory, device, dtype,
            make_ranker=ranker, sequences=sequences_of(prompts), rewards=rewards, validation=validation,
        )  # fmt: skip
        counts, epochs_per_second = train(trainer, directory)
    counts |= {
        "prompts": len(prompts),
        "prompts_per_second": round(len(prompts) * epochs_per_second, 1),
        **chosen(trainer.state),
    }
    if trainer.is_world_process_zero():
        save_policy(config, start, trainer, counts, dtype, directory)
        name = Path(config.out).name
        (directory / PAGE).write_text(render(trainer.state.log_history, name), encoding="utf-8")
    return counts
