"""dpo: teach a fine-tuned checkpoint to prefer what came next to its own wrong answers, and save it merged.

Interrupted at any point, the same command continues: with the negatives that it had mined, from the newest checkpoint
that is whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, set_seed

from llmrec.configs import DpoConfig
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.prompts import HistoryEncoder
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject, read_manifest, write_json
from llmrec.runtime.stage_directory import run_stage
from llmrec.training.dpo.negative_difficulty import MOST_SCORED, hardness, log_prob_gaps
from llmrec.training.dpo.negatives import mine
from llmrec.training.dpo.preferences import FILE, PreferenceCollator, Preferences, read_preferences
from llmrec.training.dpo.trainer import SidDPOTrainer, make_trainer, train
from llmrec.training.preference.policy import check_batch, load_policy, load_start, save_policy, training_prompts
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from llmrec.training.start import RunInputs, make_validation
from llmrec.training.validation import chosen, evaluation_mode, tell_chosen

HARDNESS = "hardness.json"


def main(config: DpoConfig) -> JsonObject:
    """Optimise preferences and save the merged model.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint, the catalogue or the preferences are not usable.
    """
    start = load_start(config)
    given = load_preferences(config, start)

    def build(directory: Path) -> JsonObject:
        trainer, counts = optimise(config, start, given, directory)
        if trainer.is_world_process_zero():
            dtype = resolve_dtype(config.precision, resolve_device(config.device))
            save_policy(config, start, trainer, counts, dtype, directory)
        return counts

    inputs = {"catalog": config.catalog, "model": config.model}
    out = run_stage("dpo", config, inputs | ({"preferences": config.preferences} if given else {}), build)
    counts = read_manifest(out)["counts"]
    say(f"dpo: {counts['steps']} steps over {counts['prompts']:,} prompts, last loss {counts['loss']:.4f} -> {out}")
    tell_chosen(config.stage, counts)
    return {"out": str(out), **counts}


def load_preferences(config: DpoConfig, start: RunInputs) -> Preferences | None:
    """Those of the file, if there is one; else it is checked that there will be enough.

    Raises:
        ValueError: If the file cannot be trained on, or there are too few prompts for a batch.
    """
    if config.preferences is None:
        check_batch(len(training_prompts(start.catalog, config)), config.batch_size)
        return None
    given = read_preferences(config.preferences, start.catalog, start.table)
    check_batch(len(given), config.batch_size)
    if given.oracle and config.loss != "dpo":
        raise ValueError(f"'{config.preferences}' has an oracle for each pair, which needs loss 'dpo'; set it.")
    return given


def optimise(
    config: DpoConfig, start: RunInputs, given: Preferences | None, directory: Path
) -> tuple[SidDPOTrainer, JsonObject]:
    """Train in a directory, or go on where a run ended in it.

    Returns:
        The trainer at its end, and the counts of the manifest.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    sid_config, table, pad_token_id = start.sid_config, start.table, start.tokenizer.pad_token_id
    collator = PreferenceCollator(
        start.prefix, HistoryEncoder(table, sid_config.vocabulary), sid_config.max_history, pad_token_id
    )
    set_seed(config.seed)
    model, lora = load_policy(config, dtype)
    if config.quantization == "none":  # 4-bit weights are on their device
        model.to(device)
    model.train()  # 4-bit layers on a CPU must not be asked in any other mode, see `evaluation_mode`
    trie = SidTrie(table, device=device)
    with sibling_scores_in_forward(model, sid_config.vocabulary, trie, sid_config.normalize_over):
        preferences = (given or mined(config, start, model, directory)).whole_batches(config.batch_size, config.seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            report(config, start, model, preferences, collator, directory)
        validation = make_validation(config, start, len(preferences), from_start=True)
        examples = preferences.examples(config.label_smoothing)
        trainer = make_trainer(
            config, model, lora, start.tokenizer, examples, collator, directory, device, dtype, validation
        )
        counts = {**train(trainer, directory), **chosen(trainer.state)}
    return trainer, counts


def mined(config: DpoConfig, start: RunInputs, model: PreTrainedModel, directory: Path) -> Preferences:
    """Negatives of the training prompts, as the run had mined them before if it was interrupted."""
    path = directory / FILE
    processes.wait()
    if path.is_file():
        return read_preferences(path, start.catalog, start.table)
    prompts, counts = training_prompts(start.catalog, config), start.catalog.training_counts
    with evaluation_mode(model):
        ranker = SidRanker(model, start.table, start.sid_config, start.prefix)
        preferences = mine(prompts, start.table, counts, config, ranker)
    if len(preferences) < len(prompts):
        say(f"dpo: {len(prompts) - len(preferences)} prompts have no unseen item and are left out.")
    if processes.is_main():
        preferences.save(path, start.table.item_ids)
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
    """Say and write how hard the negatives are, by those of some prompts."""
    some = preferences.sample(MOST_SCORED, config.seed)
    figures = hardness(some, start.table, log_prob_gaps(model, some, collator, config.micro_batch_size))
    for source, values in figures.items():
        say(f"dpo: {source}: {', '.join(f'{name} {value}' for name, value in values.items())}")
    if processes.is_main():
        write_json(directory / HARDNESS, figures)
