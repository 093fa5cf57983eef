"""import: take a checkpoint of another project, with its tokens, semantic IDs and prompt.

The result is a checkpoint like any other, with the project's items and held-out examples as a catalogue in `catalog/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from llmrec.configs import ImportConfig
from llmrec.data import catalog_files
from llmrec.data.catalog import Catalog
from llmrec.data.columns import HISTORY, ITEM_ID, SPLIT, TARGET, TEXT, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.runtime.console import say, tell
from llmrec.runtime.hub.checkpoints import resolve
from llmrec.runtime.manifest import JsonObject, adopt, content_hash, read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.serve.exchange.foreign import ForeignData, examples_table
from llmrec.serve.exchange.lcrec import read_lcrec
from llmrec.serve.exchange.minionerec import read_minionerec
from llmrec.serve.exchange.openonerec import read_openonerec
from llmrec.sid.catalogs.catalog_record import CatalogRecord

CATALOG = "catalog"  # directory below the result
READERS: dict[str, Callable[[ImportConfig], ForeignData]] = {
    "minionerec": read_minionerec,
    "openonerec": read_openonerec,
    "lcrec": read_lcrec,
}


def main(config: ImportConfig) -> JsonObject:
    """Import a checkpoint.

    Returns:
        `out`, and the counts of the manifest.

    Raises:
        ValueError: If a file cannot be read, or files and checkpoint do not belong together.
    """
    data = READERS[config.layout](config)
    source = resolve(config.model)
    if (source / "adapter_config.json").is_file():
        raise ValueError(
            f"model '{config.model}' is an adapter; merge it into its base first (peft's merge_and_unload)."
        )
    files = {"index": config.index, "info": config.info, "test": config.test, "prompt": config.prompt}
    inputs = {"model": config.model} | {name: path for name, path in files.items() if path is not None}

    def build(directory: Path) -> JsonObject:
        return write_checkpoint(directory, config, source, data)

    out = run_stage("import", config, inputs, build)
    return {"out": str(out), **read_manifest(out)["counts"]}


def write_checkpoint(directory: Path, config: ImportConfig, source: Path, data: ForeignData) -> JsonObject:
    """Write a checkpoint of llmrec, with the items of the project as a catalogue.

    Args:
        directory: Existing directory to write.
        config: Config of the stage.
        source: Directory of the project's checkpoint.
        data: Content of its files.

    Returns:
        Counts for the manifest.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or lacks tokens of the items.
    """
    from llmrec.model.card import write_card  # torch and transformers, whose imports take seconds
    from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, save_model
    from llmrec.model.prompts import Prompt
    from llmrec.serve.exchange.tokens import LevelTokens, make_vocabulary, move_ids, move_rows
    from llmrec.sid.table import SidTable

    tokenizer = load_tokenizer(source)
    tokens = LevelTokens(tokenizer, data, config.model)
    model, first, order = load_model(source, dtype="auto"), tokens.first, tokens.new_order()
    codes_NL = tokens.codes(data.numbers_NL)
    if order is not None:
        say(f"import: the tokens of the levels lie apart, so {len(order):,} rows change places.")
        move_rows(model, first, order)
        move_ids(tokenizer, first, order)
    vocabulary, prefix = make_vocabulary(tokenizer, LevelTokens(tokenizer, data, config.model), data)
    table = SidTable(data.item_ids, codes_NL, level_sizes=vocabulary.level_sizes)
    save_model(model, tokenizer, directory)
    catalog = write_catalog(directory / CATALOG, data)
    details = {
        "base_model": Path(config.model).name,
        "imported_from": config.layout,
        "catalog_sha256": content_hash(directory / CATALOG),
        **CatalogRecord.of(catalog).save(directory),
    }
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1024
    fitting = max(1, (context - len(tokenizer.encode(data.prompt.text))) // vocabulary.tokens_per_item - 1)
    sid_config = SidConfig(vocabulary, Prompt(prefix), min(data.prompt.max_history, fitting), "vocabulary")
    sid_config.save(directory, table, details, tokenizer)
    write_card(directory, Path(config.out).name)
    return {
        "items": table.num_items,
        "sids": len({tuple(codes) for codes in codes_NL.tolist()}),
        "examples": 0 if data.examples is None else data.examples.height,
        "moved_rows": 0 if order is None else len(order),
    }


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    examples = f", {result['examples']:,} held-out examples" if result["examples"] else ""
    tell(f"import: {result['items']:,} items in {result['sids']:,} semantic IDs{examples} -> {result['out']}")


def write_catalog(directory: Path, data: ForeignData) -> Catalog:
    """Write titles and held-out examples as a catalogue that recommend and evaluate read."""
    directory.mkdir()
    titles = pl.Series(data.titles, dtype=pl.String)
    items = pl.DataFrame({ITEM_ID: data.item_ids, TITLE: titles.replace("", None), TEXT: titles})
    examples = examples_table(()) if data.examples is None else data.examples
    catalog_files.write(directory, items, interactions_of(examples), examples.select(USER_ID, SPLIT, HISTORY, TARGET))
    adopt(directory, "prepare")
    return Catalog.load(directory)


def interactions_of(examples: pl.DataFrame) -> pl.DataFrame:
    """All that is known of each user: the last history and its target, in their order."""
    latest = examples.group_by(USER_ID, maintain_order=True).last()
    items = latest.select(USER_ID, pl.concat_list(HISTORY, TARGET).alias(ITEM_ID))
    places = items.with_columns(pl.int_ranges(pl.col(ITEM_ID).list.len()).alias(TIMESTAMP), pl.lit(1.0).alias(WEIGHT))
    return places.explode(ITEM_ID, TIMESTAMP)
