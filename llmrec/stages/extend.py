"""extend: give a causal LM one token per (level, code), with rows that differ from the first step on.

The result is saved as the base of fine-tuning, so that an adapter needs to hold LoRA and the semantic-ID rows alone. A
checkpoint instead of a causal LM takes up a table that was appended to its own (llmrec/rebind.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.model.append_items import carried_over, check_appended, grow
from llmrec.model.backbone import check_halves
from llmrec.model.card import write_card
from llmrec.model.checkpoint import FILE as BINDING
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, new_model, resolve, save_model
from llmrec.model.codeword_rows import CodewordMeaning, codebooks_of
from llmrec.model.micro import micro_model, word_tokenizer
from llmrec.model.new_rows import ItemWords, TitleMeaning, add_rows
from llmrec.model.prompts import Prompt
from llmrec.runtime.console import say
from llmrec.runtime.device import DTYPES
from llmrec.runtime.manifest import JsonObject, read_manifest, verify
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary, check_template

MICRO = "micro"


def main(config: ExtendConfig) -> JsonObject:
    """Extend a causal LM by the tokens of a SID table.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the SID table, the catalogue, the template or the model are not usable.
    """
    verify(config.sid, "tokenize")
    table = SidTable.load(config.sid)
    if (Path(config.model) / BINDING).is_file():
        return append_items(config, table)
    check(config, table)
    inputs = {"sid": config.sid}
    if config.model != MICRO:  # a directory of that name is not meant
        inputs["model"] = config.model
    if config.catalog is not None:
        inputs["catalog"] = config.catalog

    def build(directory: Path) -> JsonObject:
        model, tokenizer = load_base(config)
        check_halves(model)
        vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, config.spare_codes, config.template)
        meaning = meaning_of(config, table, tokenizer)
        add_rows(model, vocabulary, config.seed, meaning)
        save_model(model, tokenizer, directory)
        max_history = _longest_history(model, vocabulary)
        sid_config = SidConfig(vocabulary, Prompt(), max_history, "vocabulary")
        learned_on = read_manifest(config.sid)["identity"].get("inputs", {}).get("catalog")  # none of adopted SIDs
        drawn = ", weights drawn anew" if config.weights == "random" else ""
        sid_config.save(
            directory, table, {"base_model": public_name(config.model) + drawn, "catalog_sha256": learned_on}
        )
        return {
            "sid_tokens": vocabulary.num_tokens,
            "vocabulary": len(tokenizer),
            "parameters": model.num_parameters(),
            "tied_embeddings": bool(model.config.get_text_config().tie_word_embeddings),
            "titles_explained": meaning.explained if isinstance(meaning, CodewordMeaning) else None,
        }

    out = run_stage("extend", config, inputs, build)
    counts = read_manifest(out)["counts"]
    if counts["titles_explained"]:
        shares = " and ".join(f"{share:.1%}" for share in counts["titles_explained"])
        say(f"extend: codewords explain {shares} of the variance of mean title rows, on the items they were fitted to")
    say(f"extend: {counts['sid_tokens']} SID tokens, {counts['parameters']:,} parameters -> {out}")
    return {"out": str(out), **counts}


def check(config: ExtendConfig, table: SidTable) -> None:
    """Refuse options that do not go with each other or with the semantic IDs, before a model is loaded.

    Raises:
        ValueError: With the option and what it needs.
    """
    check_template(config.template, table.num_levels)
    if config.model == MICRO and config.catalog is None:
        raise ValueError(
            "model 'micro' takes its words from the titles; set catalog to the `llmrec prepare` directory."
        )
    if config.rows != "noise" and config.catalog is None:
        raise ValueError(
            f"rows '{config.rows}' needs the titles; set catalog to the `llmrec prepare` directory, or rows to noise."
        )
    if config.catalog is not None and Catalog.load(config.catalog).item_ids != table.item_ids:
        raise ValueError(
            f"'{config.sid}' has semantic IDs of other items than '{config.catalog}' has, or in another order; run "
            "`llmrec tokenize` on this catalogue, or give the one that the SIDs are of."
        )
    if config.rows == "codewords":
        codebooks_of(config.sid)


def append_items(config: ExtendConfig, table: SidTable) -> JsonObject:
    """Give a checkpoint a table that was appended to its own; published semantic IDs and all weights stay.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If an option asks for other weights, or the table is not the checkpoint's with items added.
    """
    check_keeps_weights(config)
    sid_config, old, details = SidConfig.load(resolve(config.model))
    check_appended(old, table)
    details, left_out = carried_over(details, config.model, config.sid)

    def build(directory: Path) -> JsonObject:
        model, tokenizer = load_model(config.model, dtype="auto"), load_tokenizer(config.model)
        vocabulary, notes = grow(sid_config.vocabulary, table.level_sizes, tokenizer, model, config.seed)
        save_model(model, tokenizer, directory)
        dataclasses.replace(sid_config, vocabulary=vocabulary).save(directory, table, details)
        if "counts" in details:
            write_card(directory, Path(config.out).name)
        return {
            "sid_tokens": vocabulary.num_tokens,
            "vocabulary": len(tokenizer),
            "new_items": table.num_items - old.num_items,
            "grown": notes,
        }

    out = run_stage("extend", config, {"sid": config.sid, "model": config.model}, build)
    counts = read_manifest(out)["counts"]
    grown = "; ".join(counts["grown"]) + ": fine-tune, their rows are untrained" if counts["grown"] else "no new tokens"
    say(f"extend: {counts['new_items']} new items, {grown} -> {out}")
    if left_out:
        say(f"extend: they can be recommended, but not evaluated or trained on yet: {left_out}.")
    return {"out": str(out), **counts}


def check_keeps_weights(config: ExtendConfig) -> None:
    """Refuse options that a checkpoint has decided already.

    Raises:
        ValueError: With their names.
    """
    decided = ("catalog", "rows", "template", "spare_codes", "weights", "dtype")
    given = [f.name for f in dataclasses.fields(config) if f.name in decided and getattr(config, f.name) != f.default]
    if given:
        raise ValueError(
            f"model '{config.model}' is a checkpoint of llmrec, which keeps its tokens and weights; leave out {given}, "
            "or give the original model."
        )


def meaning_of(
    config: ExtendConfig, table: SidTable, tokenizer: PreTrainedTokenizerBase
) -> TitleMeaning | CodewordMeaning | None:
    """What rows of codes lean towards.

    Raises:
        ValueError: If no item has a title with a word.
    """
    if config.rows == "noise":
        return None
    words = ItemWords.of(Catalog.load(config.catalog).titles, tokenizer)
    if not len(words.items):
        raise ValueError(
            f"rows '{config.rows}' needs titles, and no item of '{config.catalog}' has one; set rows to noise."
        )
    if config.rows == "titles":
        return TitleMeaning(words, table)
    return CodewordMeaning(codebooks_of(config.sid), table, words)


def load_base(config: ExtendConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to extend and its tokenizer; 'micro' and random weights are made, anything else is loaded."""
    if config.model == MICRO:
        tokenizer = word_tokenizer(Catalog.load(config.catalog).titles, config.micro_words)
        model = micro_model(tokenizer, config.micro_layers, config.micro_hidden, config.micro_dropout, config.seed)
        return model.to(DTYPES.get(config.dtype, torch.float32)), tokenizer
    tokenizer = load_tokenizer(config.model)
    if config.weights == "random":
        model = new_model(config.model, config.seed)
        return model.to(DTYPES.get(config.dtype, model.dtype)), tokenizer
    return load_model(config.model, dtype=DTYPES.get(config.dtype, "auto")), tokenizer


def public_name(source: str) -> str:
    """A Hub id as it is; of a local path the last part, since a published checkpoint should not tell the rest."""
    return source if source.count("/") == 1 and not source.startswith((".", "/", "~")) else Path(source).name


def _longest_history(model: PreTrainedModel, vocabulary: SidVocabulary) -> int:
    """Items of a history that surely fit the model's context beside a prompt of half its length, at most 50."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1024
    return max(1, min(50, context // 2 // vocabulary.num_levels))
