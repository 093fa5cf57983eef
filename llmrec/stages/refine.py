"""refine: move items to semantic IDs that the fine-tuned LLM finds more likely for them (SIIT).

The weights stay as they are; the table changes. `llmrec sft` on the result trains on the new semantic IDs, and the two
stages can be repeated.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from llmrec.configs import TRAINING, RefineConfig
from llmrec.data.catalog import Catalog
from llmrec.model.backbone import moved
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.model.history.choice import make_history_encoder
from llmrec.runtime import processes
from llmrec.runtime.console import say, tell
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject, read_manifest, verify
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.answer_head import refuse_head
from llmrec.training.refine.assign import assign, move_items
from llmrec.training.refine.evidence import TASK, Evidence
from llmrec.training.refine.free_sids import free_sids
from llmrec.training.refine.proposals import Proposer
from llmrec.training.start import RunInputs, catalog_problems, phases, save_checkpoint


def main(config: RefineConfig) -> JsonObject:
    """Write a checkpoint of the same weights, in which some items have other semantic IDs.

    Args:
        config: Options of the stage.

    Returns:
        `out` and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue cannot be used, or no semantic ID is free.
    """
    start = load(config)
    free = free_sids(start.table)
    if not len(free):
        raise ValueError(
            f"'{config.model}' has no free semantic ID beside those of its items: behind each prefix, all codes of "
            "the last level are taken. Tokenize with a larger codebook, or with collision suffix_ordinal."
        )

    def build(directory: Path) -> JsonObject:
        return refine(config, start, free, directory)

    out = run_stage(config.stage, config, {"catalog": config.catalog, "model": config.model}, build)
    return {"out": str(out), **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tell(
        f"refine: {result['moved']:,} items ({result['churn']:.1%}) have another semantic ID, which gains "
        f"{result['mean_gain']:.2f} nats on average -> {result['out']}"
    )


def load(config: RefineConfig) -> RunInputs:
    """Read and check everything except the weights.

    Raises:
        ValueError: If an input cannot be used, or the inputs do not belong together.
    """
    if processes.count() > 1:
        raise ValueError("refine assigns all items at once, in one process; run it without `accelerate launch`.")
    verify(config.model, *TRAINING)
    catalog = Catalog.load(config.catalog)
    sid_config, table, details = SidConfig.load(config.model)
    vocabulary = sid_config.vocabulary
    refuse_head(vocabulary.head, config.stage)
    if table.sids_per_item is not None:
        raise ValueError(f"'{config.model}' has several semantic IDs of an item; refine moves the one of each item.")
    if table.words is not None or vocabulary.has_one_block:
        raise ValueError(
            f"'{config.model}' writes items in {'words' if table.words else 'pieces'}, which follow from the items; "
            "refine moves semantic IDs, whose codes have tokens of their own."
        )
    if vocabulary.layout is not None:
        raise ValueError(
            f"'{config.model}' has tokens around its items, which refine does not write; use `llmrec sft`."
        )
    problems = catalog_problems(config, catalog, table.item_ids, details.get("catalog_sha256"))
    if problems:
        raise ValueError("; ".join(problems) + ".")
    tokenizer = load_tokenizer(config.model)
    vocabulary.check(tokenizer)
    return RunInputs(catalog, sid_config, table, details, tokenizer, sid_config.prompt.prefix(tokenizer))


def refine(config: RefineConfig, start: RunInputs, free: np.ndarray, directory: Path) -> JsonObject:
    """Move items, and write the checkpoint; returns the counts of the manifest.

    Args:
        config: Options of the stage.
        start: Inputs of the run.
        free: (F, L) codes of the free semantic IDs.
        directory: Directory to write into.
    """
    model = moved(load_model(config.model, dtype="auto"), resolve_device(config.device))
    proposals = Proposer(model, start.table, free, start.sid_config.vocabulary).propose(
        evidence_of(config, start), config.batch_size
    )
    chosen, gain = assign(proposals, config.max_churn, config.min_gain)
    is_moved = chosen >= 0
    counts: JsonObject = {
        "moved": int(is_moved.sum()),
        "churn": float(is_moved.mean()),
        "mean_gain": float(gain[is_moved].mean()) if is_moved.any() else 0.0,
        "would_gain": float((proposals.gains.max(axis=1) >= config.min_gain).mean()),
        "free_sids": len(free),
    }
    refined = dataclasses.replace(start, table=move_items(start.table, free, chosen))
    save_checkpoint(config, refined, model.cpu(), [counts], counts, directory)
    return counts


def evidence_of(config: RefineConfig, start: RunInputs) -> Evidence:
    """Prompts that ask for the items; by their titles only if the checkpoint has learned that task."""
    learned = any(TASK in phase.get("sft", {}).get("tasks", ()) for phase in phases(start.details))
    if not learned:
        say(f"refine: the checkpoint was trained without task {TASK}, so histories alone are read.")
    sid_config = start.sid_config
    encoder = make_history_encoder(start.table, sid_config.vocabulary)
    tokenizer = start.tokenizer if learned else None
    return Evidence.of(
        start.catalog, encoder, start.prefix, sid_config.max_history, tokenizer, sid_config.prompt.chat_template,
        config.seed,
    )  # fmt: skip
