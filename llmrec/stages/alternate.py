"""alternate: fine-tune the extended LLM and train its item tokenizer in turns, and save both (ETEGRec).

The result is a checkpoint as `llmrec sft` writes it, with its own semantic IDs, and in its directory `sid` the trained
tokenizer as `llmrec tokenize` would have written it. Interrupted at any point, the same command continues from the
newest checkpoint that is whole.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from llmrec.configs import AlternateConfig, TokenizeConfig
from llmrec.model.backbone import causal_lm
from llmrec.model.prompts import HistoryEncoder
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.stages import sft
from llmrec.stages.tokenize import TokenizeResult, write_report
from llmrec.tokenizers import ETEGRec
from llmrec.tokenizers.append import PublishedSids, append
from llmrec.tokenizers.config import method_options
from llmrec.training.alternate.alignment import Adapters
from llmrec.training.alternate.pools import PoolingCollator
from llmrec.training.alternate.schedule import Schedule
from llmrec.training.alternate.tokenizer_turns import Alternation
from llmrec.training.alternate.trainer import AlternateTrainer
from llmrec.training.sft.dropout import residual_dropout
from llmrec.training.sft.examples import num_targets
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.sft.trainer import make_trainer, train
from llmrec.training.start import RunInputs, make_validation
from llmrec.training.validation import best_step, log_best_step
from llmrec.views import ItemViews, view_files

SID = "sid"  # directory of the tokenizer within the checkpoint
POLICY: Literal["suffix_ordinal"] = "suffix_ordinal"


@dataclass(frozen=True)
class AlternateInputs:
    """What a run starts from.

    Attributes:
        llm: As of `llmrec sft`.
        published: The tokenizer and its semantic IDs.
        views: Those that it was fitted on, in its order.
        examples: What an epoch trains on.
        plan: Of the run.
    """

    llm: RunInputs
    published: PublishedSids
    views: ItemViews
    examples: Dataset
    plan: Schedule


def main(config: AlternateConfig) -> JsonObject:
    """Train, and save the merged model with its semantic IDs and tokenizer.

    Returns:
        out and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint, the semantic IDs, the views or the catalogue are not usable, or the
            tokenizer collapses.
    """
    begun = load(config)

    def build(directory: Path) -> JsonObject:
        trainer, counts = fine_tune(config, begun, directory)
        save(config, begun, trainer, counts, directory)
        return counts

    files = view_files(config.views, list(begun.views))
    inputs = {name: getattr(config, name) for name in ("catalog", "model", "sid", "views")}
    out = run_stage(config.stage, config, inputs | {f"view {name}": file for name, file in files.items()}, build)
    counts = read_manifest(out)["counts"]
    say(
        f"alternate: {counts['steps']} steps, {counts['cycles']} passes of the tokenizer, last loss "
        f"{counts['loss']:.4f}, {counts['changed_items']:.1%} of the items have another semantic ID -> {out}"
    )
    log_best_step(config.stage, counts)
    return {"out": str(out), **counts}


def load(config: AlternateConfig) -> AlternateInputs:
    """Read and check everything but the weights of the LLM.

    Raises:
        ValueError: If something is not usable, or does not go with the rest.
    """
    if processes.count() > 1 or processes.sharding():
        raise ValueError(
            f"alternate trains in one process, and {processes.count()} were started: targets are compared within one "
            "batch, and a tokenizer of each process would give its own semantic IDs. Run `llmrec alternate` without "
            "`accelerate launch`; `llmrec sft` on what it writes uses all."
        )
    published = PublishedSids.load(config.sid, config.device)
    check(config, published)
    llm = sft.load(config)
    if llm.table.sha256 != published.table.sha256:
        raise ValueError(
            f"'{config.model}' has other semantic IDs than '{config.sid}'; run `llmrec extend --sid {config.sid}` and "
            "give its result, or the directory of semantic IDs that the model was extended with."
        )
    catalog = llm.catalog
    views = ItemViews.load(config.views, catalog, published.tokenizer.view_names)
    append(published, catalog, views)  # refuses views of which it would make other codes
    examples, _ = sft.make_examples(config, catalog, llm.tokenizer, llm.table.num_levels)
    return AlternateInputs(llm, published, views, examples, Schedule.of(config, examples))


def check(config: AlternateConfig, published: PublishedSids) -> None:
    """Refuse semantic IDs of another making.

    Raises:
        ValueError: If they are of another method, or by another collision policy.
    """
    method = published.tokenizer.method
    if method != ETEGRec.method:
        raise ValueError(
            f"'{config.sid}' holds semantic IDs of method '{method}', whose tokenizer cannot be trained with the LLM; "
            f"run `llmrec tokenize --method {ETEGRec.method}`, and `llmrec extend` on its result."
        )
    if published.policy != POLICY:
        raise ValueError(
            f"'{config.sid}' was made with collision '{published.policy}'; codes that change need a suffix for every "
            f"item, so run `llmrec tokenize --method {ETEGRec.method} --collision {POLICY}`."
        )


def fine_tune(config: AlternateConfig, begun: AlternateInputs, directory: Path) -> tuple[AlternateTrainer, JsonObject]:
    """Train in a directory, or go on where a run ended in it.

    Returns:
        The trainer at its end, and the counts of the manifest.
    """
    start, device = begun.llm, resolve_device(config.device)
    table, sid_config, dtype = start.table, start.sid_config, resolve_dtype(config.precision, device)
    collator = PoolingCollator(
        start.prefix,
        HistoryEncoder(table, sid_config.vocabulary),
        start.tokenizer.pad_token_id,
        config.packing,
        seed=config.seed,
        known_N=begun.views.known,
    )
    validation = make_validation(config, start, num_targets(begun.examples))
    model = sft.make_model(config, sid_config, dtype)
    alternation = make_alternation(config, begun, model)
    with (
        residual_dropout(model, config.dropout),
        sid_loss_in_forward(
            model, sid_config.vocabulary, config.normalize_over, config.label_smoothing, extra_loss=alternation.loss
        ),
    ):
        trainer = make_trainer(
            config, model, start.tokenizer, begun.examples, collator, directory, device, dtype, validation,
            functools.partial(AlternateTrainer, alternation),
        )  # fmt: skip
        counts = {**train(trainer, collator, directory), **best_step(trainer.state)}
    changed = (table.all_codes != alternation.table.all_codes).any(axis=1).mean()
    return trainer, {**counts, "cycles": alternation.cycle, "changed_items": float(changed)}


def make_alternation(
    config: AlternateConfig, begun: AlternateInputs, model: PreTrainedModel | PeftModel
) -> Alternation:
    """The tokenizer's side of a run, at its start."""
    fitted = begun.published.tokenizer
    tokenizer = fitted.end_to_end(begun.llm.catalog, begun.views)
    hidden = causal_lm(model).get_input_embeddings().weight.shape[1]
    adapters = Adapters(hidden, fitted.latent_dim, tokenizer.points.shape[1], config.seed)
    return Alternation(
        config, begun.plan, tokenizer, adapters.to(tokenizer.points.device), begun.llm.table,
        begun.llm.sid_config.vocabulary,
    )  # fmt: skip


def save(
    config: AlternateConfig, begun: AlternateInputs, trainer: AlternateTrainer, counts: JsonObject, directory: Path
) -> None:
    """Write the merged model with all that belongs to it, and the tokenizer."""
    table = trainer.alternation.table
    sft.save(config, dataclasses.replace(begun.llm, table=table), trainer, trainer.model, counts, directory)
    begun.published.tokenizer.take(trainer.alternation.tokenizer)
    note = f"Trained with an LLM by `llmrec alternate`: {counts['cycles']} passes."
    save_tokenizer(config, begun, table, note, directory)


def save_tokenizer(
    config: AlternateConfig, begun: AlternateInputs, table: SidTable, note: str, directory: Path
) -> None:
    """Write what `llmrec tokenize` writes, so that new items can be appended and reports compared."""
    tokenizer, catalog, views = begun.published.tokenizer, begun.llm.catalog, begun.views
    own = TokenizeConfig(
        out=str(directory / SID), overwrite=True, catalog=config.catalog, views=config.views, view_names=list(views),
        method=tokenizer.method, options=method_options(tokenizer), collision=POLICY, seed=tokenizer.seed,
        device=tokenizer.device,
    )  # fmt: skip

    def build(workdir: Path) -> JsonObject:
        table.save(workdir)
        tokenizer.save_pretrained(workdir)
        write_report(
            workdir,
            own,
            catalog,
            views,
            TokenizeResult(table, tokenizer.encode(catalog, views), tokenizer, POLICY, [note]),
        )
        return {"num_items": table.num_items, "num_levels": table.num_levels, "level_sizes": table.level_sizes}

    run_stage("tokenize", own, {"catalog": config.catalog, "views": config.views}, build)
