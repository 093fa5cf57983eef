"""sft: fine-tune the extended LLM on the training sequences and save it merged, ready to recommend.

Interrupted at any point, the same command continues from the newest checkpoint that is whole.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, SchedulerType, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from llmrec import processes
from llmrec.artifact import SCRATCH, run_stage
from llmrec.backbone import compile_layers
from llmrec.card import write_card
from llmrec.catalog import Catalog
from llmrec.checkpoint import Binding, load_tokenizer, save_model
from llmrec.configs import SftConfig
from llmrec.console import say
from llmrec.device import resolve_device, resolve_dtype
from llmrec.evaluation.learning import CUTOFF
from llmrec.manifest import content_hash, read_manifest, verify, write_json
from llmrec.prompts import HistoryEncoder, Prompt
from llmrec.sid import SidTable
from llmrec.tasks import task_problems
from llmrec.training.augmentation import Augmentation
from llmrec.training.captured import CapturedLoss
from llmrec.training.dropout import residual_dropout
from llmrec.training.examples import HistoryCollator, add_draws, build_dataset, fill_last_batch
from llmrec.training.losses import IGNORED, sid_loss_in_forward
from llmrec.training.packing import check_packing
from llmrec.training.sft import SidSFTTrainer, make_trainer, split_batch, train
from llmrec.training.task_examples import TaskExamples, build_tasks
from llmrec.training.validation import Validation, chosen
from llmrec.training.weights import load_trainable, merge, require_bitsandbytes, whole

LOG = "training_log.json"


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Args:
        catalog: Training sequences and valid rows.
        binding: Vocabulary of the base, with the prompt, history length and scoring of this run.
        table: Semantic IDs.
        details: Of the base's llmrec.json.
        tokenizer: Of the base.
        prefix: Tokens before every history.
    """

    catalog: Catalog
    binding: Binding
    table: SidTable
    details: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    prefix: list[int]


def main(config: SftConfig) -> dict[str, Any]:
    """Fine-tune and save the merged model.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue are not usable.
    """
    start = load(config)

    def build(directory: Path) -> dict[str, Any]:
        trainer, counts = fine_tune(config, start, directory)
        trained = whole(trainer, config)
        if trainer.is_world_process_zero():
            save(config, start, trainer, trained, counts, directory)
        return counts

    out = run_stage("sft", config, {"catalog": config.catalog, "model": config.model}, build)
    counts = read_manifest(out)["counts"]
    speed = f"{counts['tokens_per_second']:,} tokens/s"
    say(f"sft: {counts['steps']} steps, last loss {counts['loss']:.4f}, {speed} -> {out}")
    tell_best(config.stage, counts)
    return {"out": str(out), **counts}


def tell_best(stage: str, counts: dict[str, Any]) -> None:
    """Say which weights were saved, where steps were judged."""
    if counts.get("best_step"):
        ndcg = counts[f"valid_ndcg@{CUTOFF}"]
        say(f"{stage}: the weights of step {counts['saved_step']} are saved, best valid ndcg@{CUTOFF} {ndcg:.4f}")


def load(config: SftConfig) -> Start:
    """Read and check everything but the weights.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue are not usable.
    """
    verify(config.model, "extend", "sft", "alternate")
    catalog = Catalog.load(config.catalog)
    binding, table, details = Binding.load(config.model)
    check(config, catalog, table.item_ids, details.get("catalog_sha256"))
    tokenizer = load_tokenizer(config.model)
    binding.vocabulary.check(tokenizer)
    prompt = Prompt(config.instruction, config.chat_template)
    prefix = prompt.prefix(tokenizer)
    check_length(config, len(prefix) + (config.max_history + 1) * table.num_levels)
    if "sft" in details and (prompt, config.max_history) != (binding.prompt, binding.max_history):
        say("sft: instruction, chat_template or max_history differ from the earlier phase's; these ones are saved.")
    normalize_over = "level" if config.sid_loss == "level" else "vocabulary"
    binding = dataclasses.replace(binding, prompt=prompt, max_history=config.max_history, normalize_over=normalize_over)
    return Start(catalog, binding, table, details, tokenizer, prefix)


def fine_tune(config: SftConfig, start: Start, directory: Path) -> tuple[SidSFTTrainer, dict[str, Any]]:
    """Train in a directory, or go on where a run ended in it.

    Returns:
        The trainer at its end, and the counts of the manifest.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    table, binding, pad_token_id = start.table, start.binding, start.tokenizer.pad_token_id
    examples, tasks = make_examples(config, start.catalog, start.tokenizer, table.num_levels)
    encoder, augmentation = HistoryEncoder(table, binding.vocabulary), Augmentation.of(config)
    collator = HistoryCollator(start.prefix, encoder, pad_token_id, config.packing, augmentation, tasks, config.seed)
    validation = make_validation(config, start, examples)
    model = make_model(config, binding, dtype)
    fills = (pad_token_id, 0, IGNORED)
    captured = CapturedLoss.of(config, model, int(table.lengths.min()), fills, device)
    with (
        residual_dropout(model, config.dropout),
        sid_loss_in_forward(model, binding.vocabulary, config.sid_loss, config.label_smoothing, captured),
    ):
        trainer = make_trainer(config, model, start.tokenizer, examples, collator, directory, device, dtype, validation)
        counts = {**train(trainer, directory), **chosen(trainer.state)}
    return trainer, {**counts, "task_examples": sum(task.num_draws for task in tasks.values())}


def make_validation(config: SftConfig, start: Start, examples: Dataset) -> Validation | None:
    """The valid rows to rank while it trains, where they are asked for."""
    if not config.eval_steps:
        return None
    rows = start.catalog.rows("valid")
    rows = rows.take(rows.sample(config.eval_rows, config.seed))  # those of `llmrec evaluate --max-rows`
    return Validation(rows, start.table, start.binding, start.prefix, examples, config.micro_batch_size, config.stage)


def make_model(config: SftConfig, binding: Binding, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """What trains, from a fixed random state."""
    set_seed(config.seed)
    model = load_trainable(config, binding.vocabulary, dtype)
    if config.packing:
        check_packing(model)
    if config.compile:
        compile_layers(model)
    return model


def save(
    config: SftConfig,
    start: Start,
    trainer: SidSFTTrainer,
    trained: PreTrainedModel | PeftModel,
    counts: dict[str, Any],
    directory: Path,
) -> None:
    """Write the merged model with all that belongs to it."""
    dtype = resolve_dtype(config.precision, resolve_device(config.device))
    save_model(merge(trained, config, dtype, directory / SCRATCH), start.tokenizer, directory)
    recipe = {
        **start.details,
        "catalog_sha256": content_hash(config.catalog),
        "data": describe_data(config.catalog),
        "earlier": phases(start.details),
        "sft": describe_recipe(config),
        "counts": counts,
    }
    start.binding.save(directory, start.table, recipe)
    write_json(directory / LOG, trainer.state.log_history)
    write_card(directory, Path(config.out).name)


def check(config: SftConfig, catalog: Catalog, item_ids: list[str], catalog_sha256: str | None) -> None:
    """Refuse what cannot be trained, before anything is loaded.

    Raises:
        ValueError: With every option at fault and what it may be.
    """
    problems = []
    if item_ids != catalog.item_ids:
        problems.append(
            f"'{config.model}' was extended for another catalogue than '{config.catalog}' ({len(item_ids)} and "
            f"{catalog.num_items} items). Run `llmrec tokenize` and `llmrec extend` on this catalogue"
        )
    elif catalog_sha256 not in (None, content_hash(config.catalog)):
        problems.append(
            f"'{config.model}' was made on another split of the items of '{config.catalog}', which may hold what this "
            "one tests; use that catalogue, or run `llmrec embed`, `tokenize` and `extend` on this one"
        )
    if len(catalog.train) == 0:
        problems.append(
            f"'{config.catalog}' has no training rows; lower `k_core` or change `split` in `llmrec prepare`"
        )
    if processes.sharding() == "DeepSpeed":
        problems.append("accelerate was told to use DeepSpeed; launch with recipes/accelerate/ddp.yaml, or fsdp2.yaml")
    if processes.sharding() == "FSDP" and (config.train != "full" or config.eval_steps or config.compile):
        problems.append(
            "under FSDP train must be 'full', without eval_steps and compile, which need all weights in each process; "
            "launch with recipes/accelerate/ddp.yaml"
        )
    schedulers = [scheduler.value for scheduler in SchedulerType]
    if config.scheduler not in schedulers:
        problems.append(f"scheduler is '{config.scheduler}'; choose from {', '.join(schedulers)}")
    installed = get_available_reporting_integrations()
    for name in set(config.report_to) - {*installed, "all", "none"}:
        known = name in INTEGRATION_TO_CALLBACK
        remedy = "install its package" if known else f"choose from {', '.join(INTEGRATION_TO_CALLBACK)}"
        problems.append(f"report_to names '{name}', which is {'not installed' if known else 'no tracker'}; {remedy}")
    problems += task_problems(config, catalog)
    if config.eval_steps and len(catalog.rows("valid")) == 0:
        problems.append(
            f"'{config.catalog}' has no 'valid' rows for eval_steps; leave eval_steps out, or run `llmrec prepare` "
            "with more users or a smaller k_core"
        )
    if problems:
        raise ValueError("; ".join(problems) + ".")
    if config.quantization == "nf4":
        require_bitsandbytes()
    split_batch(config)


def check_length(config: SftConfig, num_tokens: int) -> None:
    """Refuse a history cap that does not fit the model's context.

    Raises:
        ValueError: If `num_tokens` of prompt and items exceed it.
    """
    context = context_of(config.model)
    if context and num_tokens > context:
        raise ValueError(
            f"The instruction and {config.max_history} + 1 items take {num_tokens} tokens but the model's context is "
            f"{context}; lower max_history."
        )


def make_examples(
    config: SftConfig, catalog: Catalog, tokenizer: PreTrainedTokenizerBase, num_levels: int
) -> tuple[Dataset, dict[str, TaskExamples]]:
    """What an epoch trains on, and the source of the examples of tasks.

    Raises:
        ValueError: If a task has nothing to draw, or does not fit the model's context.
    """
    histories = build_dataset(catalog.train.sequences(), config.max_history, config.loss_on)
    tasks = build_tasks(config, catalog, tokenizer, len(histories))
    context = context_of(config.model)
    for name, task in tasks.items():
        if context and task.longest(num_levels) > context:
            raise ValueError(
                f"An example of task '{name}' takes up to {task.longest(num_levels)} tokens but the model's context is "
                f"{context}; lower task_text_tokens or task_history."
            )
    num_draws = {name: task.num_draws for name, task in tasks.items()}
    examples = add_draws(histories if config.histories else histories.select([]), num_draws)
    return fill_last_batch(examples, config.batch_size), tasks


def context_of(model: str) -> int | None:
    """Tokens that a model can attend to, where its config says."""
    return getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)


def describe_data(catalog: str) -> dict[str, Any]:
    """Dataset, filter and split, for the model card; of a file its name, not where it lies."""
    manifest = read_manifest(catalog)
    settings = {key: manifest["config"].get(key) for key in ("dataset", "k_core", "split", "max_history", "seed")}
    if settings["dataset"] is None and manifest["config"].get("interactions"):
        settings["dataset"] = Path(manifest["config"]["interactions"]).name
    return {**settings, "counts": manifest["counts"]}


def describe_recipe(config: SftConfig) -> dict[str, Any]:
    """What makes the weights what they are, for the model card; no paths."""
    settings = [f.name for f in dataclasses.fields(config) if f.metadata["identity"]]
    return {name: getattr(config, name) for name in settings if name not in ("catalog", "model", "sid", "views")}


def phases(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Recipe and counts of every run of this stage behind a checkpoint, oldest first; empty of one just extended.

    Args:
        details: Of its llmrec.json.
    """
    last = [{name: details[name] for name in ("sft", "counts")}] if "sft" in details else []
    return [*details.get("earlier", []), *last]
