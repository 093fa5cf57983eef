"""Inputs of a training run, the checks made before weights are loaded, and saving the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from llmrec.configs import TRAINING, AlternateConfig, FineTuneConfig, RefineConfig
from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import ItemIds
from llmrec.model.card import write_card
from llmrec.model.checkpoint import SidConfig, save_model
from llmrec.runtime import processes
from llmrec.runtime.manifest import JsonObject, content_hash, read_manifest, write_json
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.table import SidTable
from llmrec.training.arguments import split_batch
from llmrec.training.validation import Validation
from llmrec.training.weights import require_bitsandbytes

LOG = "training_log.json"
PATHS = ("catalog", "model", "sid", "views", "preferences")  # options that name files; the model card omits them


@dataclass(frozen=True)
class RunInputs:
    """Inputs of a training run.

    Args:
        catalog: Training sequences and validation examples.
        sid_config: Vocabulary of the base, with the prompt, history length and scoring of this run.
        table: Semantic IDs of the catalogue.
        details: Further content of the base's llmrec.json.
        tokenizer: Tokenizer of the base.
        prefix: Token ids before every history.
    """

    catalog: Catalog
    sid_config: SidConfig
    table: SidTable
    details: JsonObject
    tokenizer: PreTrainedTokenizerBase
    prefix: list[int]


def check(
    config: FineTuneConfig, catalog: Catalog, item_ids: ItemIds, catalog_sha256: str | None, more: Sequence[str] = ()
) -> None:
    """Refuse what cannot be trained, before weights are loaded.

    Args:
        config: Options of the stage.
        catalog: Catalogue of the config.
        item_ids: Items of the checkpoint.
        catalog_sha256: Hash of the catalogue that the checkpoint was made on, if it is known.
        more: Problems that the stage has found itself.

    Raises:
        ValueError: If anything is wrong; the message lists every problem with its remedy.
    """
    problems = catalog_problems(config, catalog, item_ids, catalog_sha256)
    if len(catalog.train) == 0:
        problems.append(
            f"'{config.catalog}' has no training interactions; lower `k_core` or change `split` in `llmrec prepare`"
        )
    if processes.sharding() == "DeepSpeed":
        problems.append("accelerate was told to use DeepSpeed; launch with recipes/accelerate/ddp.yaml, or fsdp2.yaml")
    installed = get_available_reporting_integrations()
    for name in set(config.report_to) - {*installed, "all", "none"}:
        known = name in INTEGRATION_TO_CALLBACK
        remedy = "install its package" if known else f"choose from {', '.join(INTEGRATION_TO_CALLBACK)}"
        problems.append(f"report_to names '{name}', which is {'not installed' if known else 'no tracker'}; {remedy}")
    if config.eval_steps and len(catalog.examples("valid")) == 0:
        problems.append(
            f"'{config.catalog}' has no 'valid' examples for eval_steps; leave eval_steps out, or run `llmrec prepare` "
            "with more users or a smaller k_core"
        )
    problems += more
    if problems:
        raise ValueError("; ".join(problems) + ".")
    if config.quantization == "nf4":
        require_bitsandbytes()
    split_batch(config)


def catalog_problems(
    config: FineTuneConfig | RefineConfig, catalog: Catalog, item_ids: ItemIds, catalog_sha256: str | None
) -> list[str]:
    """List why a checkpoint does not belong to a catalogue; see `check`."""
    if item_ids != catalog.item_ids:
        return [
            f"'{config.model}' was extended for another catalogue than '{config.catalog}' ({len(item_ids)} and "
            f"{catalog.num_items} items). Run `llmrec tokenize` and `llmrec extend` on this catalogue"
        ]
    if catalog_sha256 not in (None, content_hash(config.catalog)):
        return [
            f"'{config.model}' was made on another split of the items of '{config.catalog}', which may hold what this "
            "one tests; use that catalogue, or run `llmrec embed`, `tokenize` and `extend` on this one"
        ]
    return []


def check_length(model: str, max_history: int, num_tokens: int) -> None:
    """Refuse a `max_history` that does not fit the model's context.

    Raises:
        ValueError: If `num_tokens`, those of prompt and items, exceed it.
    """
    context = context_of(model)
    if context and num_tokens > context:
        raise ValueError(
            f"The instruction and {max_history} + 1 items take {num_tokens} tokens but the model's context is "
            f"{context}; lower max_history."
        )


def context_of(model: str) -> int | None:
    """Number of tokens that a model can attend to, or None if its config does not say."""
    return getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)


def make_validation(
    config: FineTuneConfig, start: RunInputs, targets: int, from_start: bool = False
) -> Validation | None:
    """Draw the validation examples as `llmrec evaluate --max-examples` draws them; None without `eval_steps`.

    Args:
        config: Options of the stage.
        start: Inputs of the run.
        targets: Number of targets that one epoch trains on.
        from_start: Validate the initial weights too.
    """
    if config.eval_steps is None:
        return None
    examples = start.catalog.examples("valid")
    return Validation(
        examples.take(examples.sample(config.eval_examples, config.seed)),
        start.table,
        start.sid_config,
        start.prefix,
        targets,
        config.micro_batch_size,
        config.stage,
        from_start,
    )


def save_checkpoint(
    config: FineTuneConfig | AlternateConfig | RefineConfig,
    start: RunInputs,
    merged: PreTrainedModel,
    log: list[JsonObject],
    counts: JsonObject,
    directory: Path,
) -> None:
    """Write the merged model with its tokenizer, semantic IDs, recipe, log and model card.

    Args:
        config: Options of the stage.
        start: Inputs of the run.
        merged: Model to save.
        log: Log entries of the Trainer.
        counts: Counts of the manifest.
        directory: Directory to write into.
    """
    save_model(merged, start.tokenizer, directory)
    kept = {name: value for name, value in start.details.items() if name not in TRAINING}
    recipe = {
        **kept,
        "catalog_sha256": content_hash(config.catalog),
        "data": describe_data(config.catalog),
        "earlier": phases(start.details),
        config.stage: describe_recipe(config),
        "counts": counts,
        **CatalogRecord.of(start.catalog).save(directory),
    }
    start.sid_config.save(directory, start.table, recipe, start.tokenizer)
    write_json(directory / LOG, log)
    write_card(directory, Path(config.out).name)


def describe_data(catalog: str) -> JsonObject:
    """Describe dataset, filter and split for the model card; of a file the name without its path."""
    manifest = read_manifest(catalog)
    settings = {key: manifest["config"].get(key) for key in ("dataset", "k_core", "split", "max_history", "seed")}
    if settings["dataset"] is None and manifest["config"].get("interactions"):
        settings["dataset"] = Path(manifest["config"]["interactions"]).name
    counts = {name: value for name, value in manifest["counts"].items() if isinstance(value, int)}  # not the report
    return {**settings, "k_core": counts.get("k_core", settings["k_core"]), "counts": counts}


def describe_recipe(config: FineTuneConfig | AlternateConfig | RefineConfig) -> JsonObject:
    """List the options that decide the weights, for the model card; of a teacher its name without its path."""
    settings = [f.name for f in dataclasses.fields(config) if f.metadata["identity"]]
    recipe = {name: getattr(config, name) for name in settings if name not in PATHS}
    return recipe | {name: [Path(path).name for path in recipe[name]] for name in recipe.keys() & {"teacher"}}


def phases(details: JsonObject) -> list[JsonObject]:
    """List recipe and counts of every run that trained a checkpoint, oldest first; empty for an extended base.

    Args:
        details: Content of its llmrec.json.
    """
    last = [{name: details[name] for name in (stage, "counts")} for stage in TRAINING if stage in details]
    return [*details.get("earlier", []), *last]
