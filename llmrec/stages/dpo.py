"""dpo: teach a fine-tuned checkpoint to prefer the item that came next to other items, and save it merged.

Interrupted at any point, the same command continues with the negatives that it had mined, from the newest checkpoint
that is whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, set_seed

from llmrec.configs import DpoConfig
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import evaluation_mode
from llmrec.model.history.choice import make_history_encoder
from llmrec.runtime import processes
from llmrec.runtime.console import say, tell
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject, read_manifest, write_json
from llmrec.runtime.stage_directory import run_stage
from llmrec.training.arguments import training_arguments
from llmrec.training.dpo.negative_difficulty import MAX_SCORED, difficulty, log_prob_gaps
from llmrec.training.dpo.negatives import mine
from llmrec.training.dpo.preference_file import FILE, read_preferences, write_preferences
from llmrec.training.dpo.preferences import PreferenceCollator, Preferences
from llmrec.training.dpo.trainer import SidDPOTrainer
from llmrec.training.preference.policy import (
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
from llmrec.training.validation import best_step, tell_best_step

DIFFICULTY = "hardness.json"


def main(config: DpoConfig) -> JsonObject:
    """Optimise preferences and save the merged model.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint, the catalogue or the preferences file is not usable.
    """
    start = load_start(config, config.normalize_over)
    given = load_preferences(config, start)

    def build(directory: Path) -> JsonObject:
        trainer, counts = optimise(config, start, given, directory)
        if trainer.is_world_process_zero():
            dtype = resolve_dtype(config.precision, resolve_device(config.device))
            save_policy(config, start, trainer.policy, trainer.state.log_history, counts, dtype, directory)
        return counts

    inputs: dict[str, str | Path] = {"catalog": config.catalog, "model": config.model}
    if config.preferences is not None:
        inputs["preferences"] = config.preferences
    out = run_stage("dpo", config, inputs, build, reused=[FILE])
    return {"out": str(out), **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    over = f"{result['steps']} steps over {result['prompts']:,} prompts"
    tell(f"dpo: {over}, last loss {result['loss']:.4f} -> {result['out']}")
    tell_best_step("dpo", result)


def load_preferences(config: DpoConfig, start: RunInputs) -> Preferences | None:
    """Read the preferences file, if there is one; otherwise check that there will be enough prompts.

    Raises:
        ValueError: If the file cannot be trained on, or there are too few prompts for a batch.
    """
    if config.preferences is None:
        check_batch(len(training_prompts(start.catalog, config)), config.batch_size)
        return None
    given = read_preferences(config.preferences, start.catalog, start.table)
    check_batch(len(given), config.batch_size)
    if given.oracle and config.loss != "dpo":
        raise ValueError(f"'{config.preferences}' has an oracle column, which only loss 'dpo' uses; set loss to dpo.")
    return given


def optimise(
    config: DpoConfig, start: RunInputs, given: Preferences | None, directory: Path
) -> tuple[SidDPOTrainer, JsonObject]:
    """Train in a directory, or continue where an earlier run stopped.

    Returns:
        The trainer after training, and the counts of the manifest.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    sid_config, table, pad_token_id = start.sid_config, start.table, start.tokenizer.pad_token_id
    collator = PreferenceCollator(
        start.prefix, make_history_encoder(table, sid_config.vocabulary), sid_config.max_history, pad_token_id
    )
    set_seed(config.seed)
    model = load_policy(config, device, dtype)
    trie = SidTrie(table, device=device)
    with sibling_scores_in_forward(model, sid_config.vocabulary, trie, sid_config.normalize_over):
        preferences = (given or mine_or_read(config, start, model, directory)).whole_batches(
            config.batch_size, config.seed
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            report(config, start, model, preferences, collator, directory)
        validation = make_validation(config, start, len(preferences), from_start=True)
        examples = preferences.examples()
        policy = add_lora(model, config)
        arguments = training_arguments(config, directory, device, dtype)
        trainer = SidDPOTrainer(config, policy, arguments, examples, collator, start.tokenizer, validation)
        counts, epochs_per_second = train(trainer, directory)
    counts |= {
        "prompts": len(preferences),
        "prompts_per_second": round(len(preferences) * epochs_per_second, 1),
        **best_step(trainer.state),
    }
    return trainer, counts


def mine_or_read(config: DpoConfig, start: RunInputs, model: PreTrainedModel, directory: Path) -> Preferences:
    """Mine the negatives of the training prompts; a continued run reads those that it had mined."""
    path = directory / FILE
    processes.wait()
    if path.is_file():
        return read_preferences(path, start.catalog, start.table)
    prompts, counts = training_prompts(start.catalog, config), start.catalog.training_counts
    with evaluation_mode(model):
        ranker = SidRanker(model, start.table, start.sid_config, start.prefix)
        preferences = mine(prompts, start.table, counts, config, ranker)
    if len(preferences) < len(prompts):
        say(f"dpo: {len(prompts) - len(preferences)} prompts have no unseen item and are dropped.")
    if processes.is_main():
        write_preferences(preferences, path, start.table.item_ids)
    processes.wait()
    return preferences


def report(
    config: DpoConfig,
    start: RunInputs,
    model: PreTrainedModel,
    preferences: Preferences,
    collator: PreferenceCollator,
    directory: Path,
) -> None:
    """Print and write the difficulty of the negatives of some prompts."""
    some = preferences.sample(MAX_SCORED, config.seed)
    figures = difficulty(some, start.table, log_prob_gaps(model, some, collator, config.micro_batch_size))
    for source, values in figures.items():
        say(f"dpo: {source}: {', '.join(f'{name} {value}' for name, value in values.items())}")
    if processes.is_main():
        write_json(directory / DIFFICULTY, figures)
