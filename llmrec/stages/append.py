"""extend, given a checkpoint: take up a SID table that was appended to the checkpoint's own.

Published semantic IDs and all weights stay; the mechanics are in `llmrec.model.append_items`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.model.append_item_rows import append_item_rows
from llmrec.model.append_items import carry_details_over, check_appended, grow_vocabulary, unchanged_catalog
from llmrec.model.card import write_card
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, resolve, save_model
from llmrec.model.heads.weights import grow_vectors
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.stages.quantized import quantized_vectors

SETTLED = (
    "catalog",
    "sid_init",
    "spare_codes",
    "item_rows",
    "layout",
    "head",
    "head_temperature",
    "segmentations",
)  # options that a checkpoint has decided already


def append_items(config: ExtendConfig, table: SidTable) -> JsonObject:
    """Give a checkpoint a table that was appended to its own.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If an option asks for other weights, or the table is not the checkpoint's with items added.
    """
    check_options(config)
    sid_config, old, details = SidConfig.load(resolve(config.model))
    check_appended(old, table)
    record = CatalogRecord.load(resolve(config.model), details, old.num_items)
    source = unchanged_catalog(config.sid)
    catalog = Catalog.load(source) if source else None
    head = sid_config.vocabulary.head
    vectors_ND = quantized_vectors(config.sid, table) if head is not None and head.kind == "projection" else None
    details, reason = carry_details_over(details, config.model, config.sid)

    def build(directory: Path) -> JsonObject:
        model, tokenizer = load_model(config.model, dtype="auto"), load_tokenizer(config.model)
        if table.words is None:
            vocabulary, notes = grow_vocabulary(sid_config.vocabulary, table.level_sizes, tokenizer, model, config.seed)
        else:
            vocabulary, notes = SidVocabulary.of_words(table.words, sid_config.vocabulary.eos_token_id), []
            vocabulary.check(tokenizer)
        if vocabulary.items is not None:
            items = append_item_rows(vocabulary.items, old, table, tokenizer, model)
            vocabulary = dataclasses.replace(vocabulary, items=items)
        if vectors_ND is not None:
            grow_vectors(model, table.row_of.rows(old.item_ids).tolist(), vectors_ND)
        save_model(model, tokenizer, directory)
        kept = record.grown(old.row_of, table.item_ids, catalog).save(directory) if record else {}
        dataclasses.replace(sid_config, vocabulary=vocabulary).save(directory, table, details | kept, tokenizer)
        if "counts" in details:
            write_card(directory, Path(config.out).name)
        return {
            "sid_tokens": vocabulary.num_tokens,
            "vocabulary": len(tokenizer),
            "new_items": table.num_items - old.num_items,
            "grown": notes,
            **({"item_tokens": vocabulary.items.num_items} if vocabulary.items is not None else {}),
        }

    out = run_stage("extend", config, {"sid": config.sid, "model": config.model}, build)
    if reason:
        say(f"extend: the new items can be recommended, but not trained on yet: {reason}.")
    return {"out": str(out), **read_manifest(out)["counts"]}


def show_appended(result: JsonObject) -> None:
    """Print the result of `append_items`."""
    notes = result["grown"]
    grown = "; ".join(notes) + ": fine-tune, their tokens are untrained" if notes else "no new tokens"
    rows = "; item rows of new items are means of their neighbours'" if "item_tokens" in result else ""
    tell(f"extend: {result['new_items']} new items, {grown}{rows} -> {result['out']}")


def check_options(config: ExtendConfig) -> None:
    """Refuse options that a checkpoint has decided already.

    Raises:
        ValueError: With their names.
    """
    given = [f.name for f in dataclasses.fields(config) if f.name in SETTLED and getattr(config, f.name) != f.default]
    if given:
        raise ValueError(
            f"model '{config.model}' is a checkpoint of llmrec, which keeps its tokens and weights; leave out {given}, "
            "or give the original model."
        )
