"""extend: give a causal LM one token per (level, code) and, if asked to, per item; their vectors differ from the start.

The result is saved as the base of fine-tuning, so that an adapter holds only LoRA and the semantic-ID tokens. Given a
checkpoint of llmrec instead of a causal LM, the stage appends items to it (`llmrec.stages.append`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AddedToken, AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.model.backbone import check_halves
from llmrec.model.checkpoint import FILE, SidConfig, load_model, load_tokenizer, save_model
from llmrec.model.heads.weights import add_head
from llmrec.model.history.sids import check_readable
from llmrec.model.micro import micro_model, word_tokenizer
from llmrec.model.new_rows import InitialVectors, TitleTokens, add_rows, feature_table, title_vectors
from llmrec.model.origin import BASE_IS_RANDOM, is_untrained
from llmrec.model.prompts import Prompt
from llmrec.runtime import processes
from llmrec.runtime.console import say, tell
from llmrec.runtime.device import gigabytes, memory_of, refuse_beyond, resolve_device
from llmrec.runtime.manifest import JsonObject, read_manifest, verify
from llmrec.runtime.quiet import loading
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.aliases import refuse_aliases
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.item_layout import BEGIN, END, ONEREC_TEMPLATE, ItemLayout
from llmrec.sid.table import FILE as TABLE
from llmrec.sid.table import SidTable
from llmrec.sid.tokens.llm_tokenizer import MICRO as MICRO
from llmrec.sid.tokens.template import check_new, end_of_sequence
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.stages.append import append_items, show_appended
from llmrec.stages.quantized import quantized_vectors


def main(config: ExtendConfig) -> JsonObject:
    """Add the tokens of a SID table to a causal LM, or append items to a checkpoint.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the SID table, the catalogue or the model are not usable.
    """
    processes.refuse_several("extend")
    if config.item_rows:
        check_memory(config)
    verify(config.sid, "tokenize")
    table = SidTable.load(config.sid)
    if (Path(config.model) / FILE).is_file():
        return append_items(config, table)
    check_written(config, table)
    if config.head in ("codes", "vectors"):
        check_readable(table)
    for what, is_given in (
        ("item_rows", config.item_rows),
        ("head projection", config.head == "projection"),
        ("layout openonerec", config.layout == "openonerec"),
    ):
        if is_given:
            refuse_aliases(table, what)
    catalog = load_catalog(config, table)
    vectors_ND = quantized_vectors(config.sid, table) if config.head == "projection" else None
    titles = None if catalog is None else catalog.titles
    inputs: dict[str, str | Path] = {"sid": config.sid}
    if config.model != MICRO:  # a directory of that name is not meant
        inputs["model"] = config.model
    if config.catalog is not None:
        inputs["catalog"] = config.catalog

    def build(directory: Path) -> JsonObject:
        model, tokenizer = load_base(config, titles)
        check_halves(model)
        origin = {"base_model": public_name(config.model), BASE_IS_RANDOM: is_untrained(model)}
        vocabulary = add_tokens(config, model, tokenizer, table, titles)
        add_head(model, vocabulary, vectors_ND, config.seed)
        save_model(model, tokenizer, directory)
        max_history = longest_history(model, vocabulary)
        sid_config = SidConfig(vocabulary, Prompt(), max_history, "vocabulary")
        learned_on = read_manifest(config.sid)["identity"].get("inputs", {}).get("catalog")  # none of adopted SIDs
        record = {} if catalog is None else CatalogRecord.of(catalog).save(directory)
        details = {**origin, "catalog_sha256": learned_on, **record}
        sid_config.save(directory, table, details, tokenizer)
        return {
            "sid_tokens": vocabulary.num_tokens,
            **({"item_tokens": table.num_items} if config.item_rows else {}),
            "vocabulary": len(tokenizer),
            "parameters": model.num_parameters(),
            "tied_embeddings": bool(model.config.get_text_config().tie_word_embeddings),
        }

    out = run_stage("extend", config, inputs, build)
    return {"out": str(out), **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    if "new_items" in result:
        show_appended(result)
        return
    items = f", {result['item_tokens']} item tokens" if "item_tokens" in result else ""
    tell(f"extend: {result['sid_tokens']} SID tokens{items}, {result['parameters']:,} parameters -> {result['out']}")


def check_memory(config: ExtendConfig) -> None:
    """Refuse item rows that would not fit, before the table is read; and say what it takes to train them.

    Raises:
        ValueError: If they need more memory than the machine has, or the config of the model cannot be read.
    """
    try:
        num_items = pq.read_metadata(Path(config.sid) / TABLE).num_rows
    except (OSError, pa.ArrowException):
        return  # `verify` says what is wrong with it
    hidden, width, matrices = config.micro_hidden, 4, 1
    if config.model != MICRO:
        with loading(config.model, "AutoConfig"):
            llm = AutoConfig.from_pretrained(config.model, trust_remote_code=False).get_text_config()
            hidden, width = llm.hidden_size, (llm.dtype or torch.float32).itemsize
            matrices = 1 if llm.tie_word_embeddings else 2
    values = num_items * hidden * matrices
    what = f"rows of {hidden} values for {num_items:,} items{' in two matrices' if matrices > 1 else ''} take"
    remedy = "Leave item_rows out; the tokens of semantic IDs do not grow with the catalogue."
    refuse_beyond(values * width, torch.device("cpu"), what, remedy)
    trained, device = 12 * values, resolve_device("auto")  # in float32, with the two moments of AdamW
    if trained > memory_of(device):
        present = gigabytes(memory_of(device))
        say(f"extend: {what} {gigabytes(trained)} in training with AdamW, and here are {present}. {remedy}")


def check_written(config: ExtendConfig, table: SidTable) -> None:
    """Refuse options that do not go with words that the model has, or with pieces.

    Raises:
        ValueError: With their names.
    """
    default = {"spare_codes": 0, "item_rows": False, "head": "none", "layout": "llmrec"}
    if table.words is not None:
        default |= {"sid_init": "noise"}
        why = "has items that are written in words of the model, which have vectors already"
    elif table.pieces is not None:
        why = "writes histories in pieces, which run across items and are the same for later items"
    else:
        return
    given = [name for name, value in default.items() if getattr(config, name) != value]
    if given:
        raise ValueError(f"'{config.sid}' {why}; leave out {', '.join(given)}.")


def load_catalog(config: ExtendConfig, table: SidTable) -> Catalog | None:
    """Read the catalogue if one is given, and refuse options that do not go with it, before a model is loaded.

    Raises:
        ValueError: If the options need titles and there is no catalogue, or it has other items than the SID table.
    """
    if config.catalog is None:
        if config.model == MICRO:
            raise ValueError(
                "model 'micro' takes its words from the titles; set catalog to the `llmrec prepare` directory."
            )
        if config.sid_init == "titles":
            raise ValueError(
                "sid_init 'titles' needs the titles; set catalog to the `llmrec prepare` directory, or sid_init to "
                "noise."
            )
        return None
    catalog = Catalog.load(config.catalog)
    if catalog.item_ids != table.item_ids:
        raise ValueError(
            f"'{config.sid}' has semantic IDs of other items than '{config.catalog}' has, or in another order; run "
            "`llmrec tokenize` on this catalogue, or give the one that the SIDs are of."
        )
    return catalog


def load_base(config: ExtendConfig, titles: Sequence[str] | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model to extend and its tokenizer, or make 'micro' from the titles."""
    if config.model == MICRO:
        tokenizer = word_tokenizer(titles or (), config.micro_words)
        return micro_model(tokenizer, config.micro_layers, config.micro_hidden, config.seed), tokenizer
    tokenizer = load_tokenizer(config.model)
    return load_model(config.model, dtype="auto"), tokenizer


def add_tokens(
    config: ExtendConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: SidTable,
    titles: Sequence[str] | None,
) -> SidVocabulary:
    """Give the codes of a table their tokens, and first vectors; words have both already."""
    if table.words is not None:
        vocabulary = SidVocabulary.of_words(table.words, end_of_sequence(tokenizer))
        vocabulary.check(tokenizer)
        return vocabulary
    vocabulary = SidVocabulary.add_to(
        tokenizer,
        table.level_sizes,
        config.spare_codes,
        template=ONEREC_TEMPLATE if config.layout == "openonerec" else None,
        num_items=table.num_items if config.item_rows else 0,
        segmentations=None if table.pieces is None else config.segmentations,
    )
    layout = add_markers(tokenizer) if config.layout == "openonerec" else None
    vocabulary = dataclasses.replace(vocabulary, head=answer_head(config), layout=layout)
    codes = table if table.pieces is None else feature_table(table)
    add_rows(model, vocabulary, config.seed, initial_vectors(config, titles, codes, tokenizer), table.pieces)
    return vocabulary


def add_markers(tokenizer: PreTrainedTokenizerBase) -> ItemLayout:
    """Add the tokens that stand before and behind every item, right behind those of the codes."""
    check_new([BEGIN, END], BEGIN, tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in (BEGIN, END)])
    last = len(tokenizer) - 1
    return ItemLayout(begin=(last - 1,), end=(last,))


def initial_vectors(
    config: ExtendConfig, titles: Sequence[str] | None, table: SidTable, tokenizer: PreTrainedTokenizerBase
) -> functools.partial[list[InitialVectors]] | None:
    """Return the function that gives codes their first vectors by the old ones; None for noise.

    Raises:
        ValueError: If no item has a title with a word.
    """
    if config.sid_init == "noise":
        return None
    tokens = TitleTokens.of(titles or (), tokenizer)
    if not len(tokens.items):
        raise ValueError(
            f"sid_init 'titles' needs titles, and no item of '{config.catalog}' has one; set sid_init to noise."
        )
    return functools.partial(title_vectors, tokens, table)


def answer_head(config: ExtendConfig) -> AnswerHead | None:
    """Return the head that the options ask for; None for answers that are semantic IDs."""
    return None if config.head == "none" else AnswerHead(config.head, config.head_temperature)


def public_name(source: str) -> str:
    """Return a Hub id as it is, and the last part of a local path: a published checkpoint should not tell the rest."""
    is_path = source.count("/") != 1 or source.startswith((".", "/", "~")) or Path(source).exists()
    return Path(source).name if is_path else source


def longest_history(model: PreTrainedModel, vocabulary: SidVocabulary) -> int:
    """Number of items, at most 50, that surely fit the model's context next to a prompt of half its length."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1024
    return max(1, min(50, context // 2 // vocabulary.tokens_per_item))
