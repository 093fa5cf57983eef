"""grpo: reinforce what a fine-tuned checkpoint recommends by rewards of its own roll-outs, and save it merged.

Interrupted at any point, the same command continues from the newest checkpoint that is whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import set_seed

from llmrec.configs import GrpoConfig
from llmrec.reports.grpo import render
from llmrec.runtime.console import tell
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.training.arguments import training_arguments
from llmrec.training.grpo.groups import GroupSampler
from llmrec.training.grpo.rewards import build_rewards
from llmrec.training.grpo.trainer import SidGRPOTrainer
from llmrec.training.grpo.user_rewards import RewardFunction, UserReward, load_user_rewards, reward_files, try_rewards
from llmrec.training.preference.policy import (
    Prompts,
    add_lora,
    check_batch,
    load_policy,
    load_start,
    save_policy,
    training_prompts,
)
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from llmrec.training.start import RunInputs, make_validation
from llmrec.training.trainer import train
from llmrec.training.validation import best_step, ranker_of_training, tell_best_step

PAGE = "training.html"
NUM_TRIED = 2  # prompts that a user's reward is tried on


def main(config: GrpoConfig, functions: Sequence[RewardFunction] = ()) -> JsonObject:
    """Train and save the merged model.

    Args:
        config: Options.
        functions: Rewards in addition to those of the config, each with weight 1.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint, the catalogue or a reward is not usable.
    """
    start = load_start(config, "children")
    prompts = training_prompts(start.catalog, config)
    user_rewards = load_user_rewards(config.rewards, functions, start.table.item_ids)
    check(config, start, prompts, user_rewards)

    def build(directory: Path) -> JsonObject:
        return reinforce(config, start, prompts, user_rewards, directory)

    inputs = {"catalog": config.catalog, "model": config.model, **reward_files(user_rewards)}
    out = run_stage("grpo", config, inputs, build)
    return {"out": str(out), **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tell(f"grpo: {result['steps']} steps, {result['prompts_per_second']:,} prompts/s -> {result['out']}")
    tell_best_step("grpo", result)


def check(config: GrpoConfig, start: RunInputs, prompts: Prompts, user_rewards: Mapping[str, UserReward]) -> None:
    """Refuse what cannot be trained on, before anything is loaded.

    Raises:
        ValueError: With what is wrong and what is allowed.
    """
    num_sids = len(np.unique(start.table.all_codes, axis=0))
    if config.rollouts != "sampled" and config.num_generations > num_sids:
        raise ValueError(
            f"num_generations is {config.num_generations}, but the catalogue has {num_sids} semantic IDs and rollouts "
            f"'{config.rollouts}' draws each once; lower it, or use rollouts 'sampled'."
        )
    check_batch(len(prompts), config.batch_size)
    tried = sequences_of(prompts.take(range(min(NUM_TRIED, len(prompts)))))
    try_rewards(user_rewards, start.table, tried, config.num_generations)


def sequences_of(prompts: Prompts) -> list[np.ndarray]:
    """Histories, each followed by its target."""
    return [np.append(history, target) for history, target in zip(prompts.histories, prompts.targets, strict=True)]


def reinforce(
    config: GrpoConfig, start: RunInputs, prompts: Prompts, user_rewards: Mapping[str, UserReward], directory: Path
) -> JsonObject:
    """Train in a directory, or continue where an earlier run stopped, and save; return the counts of the manifest."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    names = list(dict.fromkeys([*config.rewards, *user_rewards]))
    weights = [*(config.reward_weights or [1.0] * len(config.rewards)), *[1.0] * (len(names) - len(config.rewards))]
    rewards = build_rewards(names, weights, start.catalog, user_rewards, config.seed, config.device)
    validation = make_validation(config, start, len(prompts), from_start=True)
    set_seed(config.seed)
    policy = add_lora(load_policy(config, device, dtype), config)
    ranker = ranker_of_training(policy, start.table, start.sid_config, start.prefix)
    sampler = GroupSampler(ranker, sequences_of(prompts), rewards, config)
    with sibling_scores_in_forward(policy, start.sid_config.vocabulary, ranker.trie, "children"):
        arguments = training_arguments(config, directory, device, dtype, shuffled=False)
        trainer = SidGRPOTrainer(config, policy, sampler, arguments, start.tokenizer, validation)
        counts, epochs_per_second = train(trainer, directory)
    counts |= {
        "prompts": len(prompts),
        "prompts_per_second": round(len(prompts) * epochs_per_second, 1),
        **best_step(trainer.state),
    }
    if trainer.is_world_process_zero():
        log, name = trainer.state.log_history, Path(config.out).name
        save_policy(config, start, policy, log, counts, dtype, directory)
        (directory / PAGE).write_text(render(log, name), encoding="utf-8")
    return counts
