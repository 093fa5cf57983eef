"""sft: fine-tune the extended LLM on the training sequences and save it merged, ready to recommend.

Interrupted at any point, the same command continues from the newest checkpoint that is whole.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, SchedulerType, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from trl import SFTConfig as TrlSftConfig

from llmrec import processes
from llmrec.artifact import SCRATCH, read_manifest, run_stage, verify, write_json
from llmrec.card import write_card
from llmrec.catalog import Catalog
from llmrec.checkpoint import Binding, load_tokenizer
from llmrec.configs import SftConfig
from llmrec.console import is_quiet, say
from llmrec.device import resolve_device
from llmrec.prompts import HistoryEncoder, Prompt
from llmrec.training.checkpoints import SealCheckpoints, newest_whole
from llmrec.training.examples import HistoryCollator, build_dataset, fill_last_batch
from llmrec.training.losses import sid_loss_in_forward
from llmrec.training.sft import (
    Precision,
    SidSFTTrainer,
    build_optimizer,
    choose_precision,
    load_trainable,
    merge,
    require_bitsandbytes,
)

LOG = "training_log.json"


def main(config: SftConfig) -> dict[str, Any]:
    """Fine-tune; returns the counts of the manifest."""
    verify(config.model, "extend", "sft")
    catalog = Catalog.load(config.catalog)
    binding, table, details = Binding.load(config.model)
    check(config, catalog, table.item_ids)
    tokenizer = load_tokenizer(config.model)
    binding.vocabulary.check(tokenizer)
    prompt = Prompt(config.instruction, config.chat_template)
    prefix = prompt.prefix(tokenizer)
    check_length(config, len(prefix) + (config.max_history + 1) * table.num_levels)
    normalize_over = "level" if config.sid_loss == "level" else "vocabulary"
    binding = dataclasses.replace(binding, prompt=prompt, max_history=config.max_history, normalize_over=normalize_over)

    def build(directory: Path) -> dict[str, Any]:
        device = resolve_device(config.device)
        examples = build_dataset(catalog.train.sequences(), config.max_history, config.loss_on)
        examples = fill_last_batch(examples, config.batch_size)
        collator = HistoryCollator(prefix, HistoryEncoder(table, binding.vocabulary), tokenizer.pad_token_id)
        set_seed(config.seed)
        precision = choose_precision(config, device)
        model = load_trainable(config, binding.vocabulary, precision)
        with sid_loss_in_forward(model, binding.vocabulary, config.sid_loss, config.label_smoothing):
            trainer = make_trainer(config, model, tokenizer, examples, collator, directory, device, precision)
            counts = train(trainer, directory)
        if trainer.is_world_process_zero():
            merged = merge(trainer.model, config, precision, directory / SCRATCH)
            merged.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            recipe = {
                **details,
                "data": describe_data(config.catalog),
                "sft": dataclasses.asdict(config),
                "counts": counts,
            }
            binding.save(directory, table, recipe)
            write_json(directory / LOG, trainer.state.log_history)
            write_card(directory, Path(config.out).name)
        return counts

    out = run_stage("sft", config, {"catalog": config.catalog, "model": config.model}, build)
    counts = read_manifest(out)["counts"]
    speed = f"{counts['tokens_per_second']:,} tokens/s"
    say(f"sft: {counts['steps']} steps, last loss {counts['loss']:.4f}, {speed} -> {out}")
    return {"out": str(out), **counts}


def check(config: SftConfig, catalog: Catalog, item_ids: list[str]) -> None:
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
    if len(catalog.train) == 0:
        problems.append(
            f"'{config.catalog}' has no training rows; lower `k_core` or change `split` in `llmrec prepare`"
        )
    if config.train == "full" and config.quantization != "none":
        problems.append("quantization 'nf4' needs train 'lora': 4-bit weights cannot be trained in full")
    schedulers = [scheduler.value for scheduler in SchedulerType]
    if config.scheduler not in schedulers:
        problems.append(f"scheduler is '{config.scheduler}'; choose from {', '.join(schedulers)}")
    installed = get_available_reporting_integrations()
    for name in set(config.report_to) - {*installed, "all", "none"}:
        known = name in INTEGRATION_TO_CALLBACK
        remedy = "install its package" if known else f"choose from {', '.join(INTEGRATION_TO_CALLBACK)}"
        problems.append(f"report_to names '{name}', which is {'not installed' if known else 'no tracker'}; {remedy}")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    if config.quantization == "nf4":
        require_bitsandbytes()
    split_batch(config)


def split_batch(config: SftConfig) -> tuple[int, int]:
    """Sequences per forward pass of a process, and passes per optimiser step.

    Raises:
        ValueError: If `batch_size` cannot be shared out evenly.
    """
    share, rest = divmod(config.batch_size, processes.count())
    micro = min(config.micro_batch_size, share)
    if rest or micro == 0 or share % micro:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide into {processes.count()} processes x micro_batch_size "
            f"{config.micro_batch_size}; make it a multiple of both."
        )
    return micro, share // micro


def check_length(config: SftConfig, num_tokens: int) -> None:
    """Refuse a history cap that does not fit the model's context."""
    from transformers import AutoConfig

    context = getattr(AutoConfig.from_pretrained(config.model).get_text_config(), "max_position_embeddings", None)
    if context and num_tokens > context:
        raise ValueError(
            f"The instruction and {config.max_history} + 1 items take {num_tokens} tokens but the model's context is "
            f"{context}; lower max_history."
        )


def describe_data(catalog: str) -> dict[str, Any]:
    """Dataset, filter and split, for the model card."""
    manifest = read_manifest(catalog)
    keys = ("dataset", "interactions", "k_core", "split", "max_history", "seed")
    return {**{key: manifest["config"][key] for key in keys}, "counts": manifest["counts"]}


def make_trainer(
    config: SftConfig,
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Dataset,
    collator: HistoryCollator,
    directory: Path,
    device: torch.device,
    precision: Precision,
) -> SidSFTTrainer:
    """TRL's trainer over item rows."""
    micro, accumulation = split_batch(config)
    arguments = TrlSftConfig(
        output_dir=str(directory / SCRATCH / "trainer"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        bf16=precision.autocast,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=config.gradient_checkpointing,
        logging_steps=config.logging_steps,
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to=config.report_to or "none",
        seed=config.seed,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        use_cache=True,  # of the saved config: the loss asks for none, but decoding without one is slow
        disable_tqdm=is_quiet() or not sys.stderr.isatty(),
        dataloader_pin_memory=device.type == "cuda",
    )
    trainer = SidSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        optimizers=(build_optimizer(model, config), None),
        callbacks=[SealCheckpoints()],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which `--json` keeps for the result
    return trainer


def train(trainer: SidSFTTrainer, directory: Path) -> dict[str, Any]:
    """Train to the end, from the newest whole checkpoint where there is one."""
    newest = newest_whole(directory / SCRATCH / "trainer", remove_others=trainer.is_world_process_zero())
    trainer.accelerator.wait_for_everyone()
    if newest is not None:
        say(f"sft: continuing from {newest.name}")
    done = int(newest.name.rsplit("-", 1)[1]) if newest else 0
    result = trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    collator, examples = trainer.data_collator, trainer.train_dataset
    lengths = [len(rows) for rows in examples["rows"] if rows]  # without the blank ones of `fill_last_batch`
    items = sum(lengths)
    tokens = len(lengths) * len(collator.prefix) + items * collator.encoder.tokens_NL.shape[1]
    share = (trainer.state.global_step - done) / trainer.state.max_steps
    seconds = result.metrics["train_runtime"]
    return {
        "steps": trainer.state.global_step,
        "examples": len(lengths),
        "targets": items - sum(examples["num_context"]),
        "loss": losses[-1] if losses else result.training_loss,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens * trainer.state.epoch * share / seconds),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
