"""alternate: fine-tune the extended LLM and train its item tokenizer in turns, and save both (ETEGRec).

The result is a checkpoint as `llmrec sft` writes it, with semantic IDs of its own. Its directory `sid` holds the
trained tokenizer as `llmrec tokenize` would have written it. If it is interrupted, the same command continues from the
newest checkpoint that is whole.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from llmrec.configs import TRAINING, AlternateConfig, SftConfig, TokenizeConfig
from llmrec.configs.tokenize import Collision
from llmrec.model.backbone import causal_lm, output_rows
from llmrec.model.checkpoint import SidConfig
from llmrec.runtime import processes
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import JsonObject, read_manifest, verify
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.sid.answer_head import refuse_head
from llmrec.sid.table import SidTable
from llmrec.stages import sft
from llmrec.stages.tokenize import TokenizeResult, write_report
from llmrec.tokenizers import ETEGRec
from llmrec.tokenizers.append import PublishedSids, append
from llmrec.tokenizers.config import method_options
from llmrec.training.alternate.alignment import Adapters, Alignment
from llmrec.training.alternate.current_sids import CurrentSids
from llmrec.training.alternate.pools import PoolingCollator
from llmrec.training.alternate.reader import HistoryReader
from llmrec.training.alternate.schedule import Progress, Schedule
from llmrec.training.alternate.tokenizer_training import TokenizerTraining
from llmrec.training.alternate.trainer import AlternateTrainer
from llmrec.training.alternate.turns import Turns
from llmrec.training.sft.trainer import train
from llmrec.training.start import RunInputs, save_checkpoint
from llmrec.training.trainer import SidTrainer
from llmrec.training.validation import best_step, tell_best_step
from llmrec.training.weights import merge
from llmrec.views import ItemViews, view_files

SID = "sid"  # directory of the tokenizer within the checkpoint
POLICY: Collision = "suffix_ordinal"


@dataclass(frozen=True)
class AlternateInputs:
    """Inputs of a run.

    Attributes:
        llm: Options of the LLM's steps.
        start: Inputs of the LLM's training, as in `llmrec sft`.
        tokenizer: Tokenizer that made the semantic IDs.
        views: Views that it was fitted on, in its order.
        examples: Examples of an epoch.
        schedule: Schedule of the run.
    """

    llm: SftConfig
    start: RunInputs
    tokenizer: ETEGRec
    views: ItemViews
    examples: Dataset
    schedule: Schedule


def main(config: AlternateConfig) -> JsonObject:
    """Train, and save the merged model with its semantic IDs and tokenizer.

    Args:
        config: Options of the stage.

    Returns:
        `out` and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint, the semantic IDs, the views or the catalogue cannot be used, or the
            tokenizer collapses.
    """
    inputs = load(config)

    def build(directory: Path) -> JsonObject:
        trainer, turns, counts = fine_tune(config, inputs, directory)
        save(config, inputs, trainer, turns, counts, directory)
        return counts

    files = view_files(config.views, list(inputs.views))
    read = {name: getattr(config, name) for name in ("catalog", "model", "sid", "views")}
    out = run_stage(config.stage, config, read | {f"view {name}": file for name, file in files.items()}, build)
    return {"out": str(out), **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tell(
        f"alternate: {result['steps']} steps, {result['cycles']} cycles, last loss {result['loss']:.4f}, "
        f"{result['changed_items']:.1%} of the items have another semantic ID -> {result['out']}"
    )
    tell_best_step("alternate", result)


def load(config: AlternateConfig) -> AlternateInputs:
    """Read and check everything except the weights of the LLM.

    Raises:
        ValueError: If an input cannot be used, or the inputs do not belong together.
    """
    if processes.count() > 1 or processes.sharding():
        raise ValueError(
            f"alternate trains in one process, and {processes.count()} were started: targets are compared within one "
            "batch, and a tokenizer of each process would give its own semantic IDs. Run `llmrec alternate` without "
            "`accelerate launch`; `llmrec sft` on what it writes uses all."
        )
    published = PublishedSids.load(config.sid, config.device)
    tokenizer = check_tokenizer(config, published)
    verify(config.model, "extend", *TRAINING)
    sid_config = SidConfig.load(config.model)[0]
    if sid_config.vocabulary.items is not None:
        raise ValueError(
            f"'{config.model}' has a token for each item (`llmrec extend --item-rows`), which alternate cannot train; "
            "extend the original model without item_rows."
        )
    if sid_config.vocabulary.layout is not None:
        raise ValueError(
            f"'{config.model}' has tokens around its items, which alternate does not write; extend without."
        )
    refuse_head(sid_config.vocabulary.head, "alternate")
    prompt = sid_config.prompt
    llm = config.llm(prompt.instruction, prompt.chat_template)
    start = sft.load(llm)
    if start.table.sha256 != published.table.sha256:
        raise ValueError(
            f"'{config.model}' has other semantic IDs than '{config.sid}'; run `llmrec extend --sid {config.sid}` and "
            "give its result, or the directory of semantic IDs that the model was extended with."
        )
    views = ItemViews.load(config.views, start.catalog, tokenizer.view_names)
    append(published, start.catalog, views)  # refuses views from which it would make other codes
    examples, _ = sft.make_examples(llm, start.catalog, start.tokenizer, start.sid_config.vocabulary)
    return AlternateInputs(llm, start, tokenizer, views, examples, Schedule.of(config, len(examples)))


def check_tokenizer(config: AlternateConfig, published: PublishedSids) -> ETEGRec:
    """Return the tokenizer of semantic IDs, if it can be trained with the LLM.

    Raises:
        ValueError: If it is of another method, or the semantic IDs were made by another collision policy.
    """
    tokenizer = published.tokenizer
    if not isinstance(tokenizer, ETEGRec):
        raise ValueError(
            f"'{config.sid}' holds semantic IDs of method '{tokenizer.method}', whose tokenizer cannot be trained with "
            f"the LLM; run `llmrec tokenize --method {ETEGRec.method}`, and `llmrec extend` on its result."
        )
    if published.policy != POLICY:
        raise ValueError(
            f"'{config.sid}' was made with collision '{published.policy}'; codes that change need a suffix for every "
            f"item, so run `llmrec tokenize --method {ETEGRec.method} --collision {POLICY}`."
        )
    return tokenizer


def fine_tune(
    config: AlternateConfig, inputs: AlternateInputs, directory: Path
) -> tuple[SidTrainer, Turns, JsonObject]:
    """Train in a directory, or continue a run that was interrupted in it.

    Returns:
        The trainer after training, the turns, and the counts of the manifest.
    """
    parts = sft.make_parts(inputs.llm, inputs.start, inputs.examples, {})
    turns = make_turns(config, inputs, parts, directory)
    trainer_class = functools.partial(AlternateTrainer, turns, config.adapter_learning_rate if config.aligns else None)
    with sft.open_trainer(
        inputs.llm, inputs.start, parts, directory, extra_loss=turns.loss, trainer_class=trainer_class
    ) as trainer:
        counts = {**train(trainer, parts.collator, directory), **best_step(trainer.state)}
    changed = (inputs.start.table.all_codes != turns.sids.table.all_codes).any(axis=1).mean()
    return trainer, turns, {**counts, "cycles": turns.progress.cycle, "changed_items": float(changed)}


def make_turns(config: AlternateConfig, inputs: AlternateInputs, parts: sft.TrainingParts, directory: Path) -> Turns:
    """Make the tokenizer's side of a run."""
    start, schedule = inputs.start, inputs.schedule
    tokenizer = inputs.tokenizer.end_to_end(start.catalog, inputs.views)
    hidden = output_rows(causal_lm(parts.model), slice(1))[0].shape[1]
    adapters = Adapters(hidden, inputs.tokenizer.latent_dim, tokenizer.points.shape[1], config.seed)
    progress = Progress.at_start(schedule)
    return Turns(
        progress,
        TokenizerTraining(
            tokenizer,
            config.tokenizer_learning_rate,
            schedule.tokenizer_steps,
            round(config.warmup_steps * schedule.tokenizer_steps / schedule.steps),
            progress.trains_jointly,
        ),
        Alignment(tokenizer, config.sia_weight, config.psa_weight),
        HistoryReader(
            parts.model,
            adapters.to(tokenizer.points.device),
            PoolingCollator(parts.collator, inputs.views.known),
            parts.dtype,
        ),
        CurrentSids(start.table, start.sid_config.vocabulary, tokenizer, parts.collator, parts.validation),
        inputs.examples,
        config.batch_size,
        config.seed,
        directory / SCRATCH / "trainer",
    )


def save(
    config: AlternateConfig,
    inputs: AlternateInputs,
    trainer: SidTrainer,
    turns: Turns,
    counts: JsonObject,
    directory: Path,
) -> None:
    """Write the merged model with all that belongs to it, and the tokenizer."""
    merged = merge(trainer.model, inputs.llm, turns.reader.dtype, directory / SCRATCH)
    start = dataclasses.replace(inputs.start, table=turns.sids.table)
    save_checkpoint(config, start, merged, trainer.state.log_history, counts, directory)
    inputs.tokenizer.take(turns.training.tokenizer)
    note = f"Trained with an LLM by `llmrec alternate`: {counts['cycles']} cycles."
    save_tokenizer(config, inputs, start.table, note, directory)


def save_tokenizer(
    config: AlternateConfig, inputs: AlternateInputs, table: SidTable, note: str, directory: Path
) -> None:
    """Write what `llmrec tokenize` writes, so that new items can be appended and reports compared."""
    tokenizer, catalog, views = inputs.tokenizer, inputs.start.catalog, inputs.views
    own = TokenizeConfig(
        out=str(directory / SID), overwrite=True, catalog=config.catalog, views=config.views, view_names=list(views),
        method=tokenizer.method, options=method_options(tokenizer), collision=POLICY, seed=tokenizer.seed,
        device=tokenizer.device,
    )  # fmt: skip

    def build(workdir: Path) -> JsonObject:
        table.save(workdir)
        tokenizer.save_pretrained(workdir)
        result = TokenizeResult(table, tokenizer.encode(catalog, views), tokenizer, POLICY, [note])
        write_report(workdir, own, catalog, views, result)
        return {"num_items": table.num_items, "num_levels": table.num_levels, "level_sizes": table.level_sizes}

    run_stage("tokenize", own, {"catalog": config.catalog, "views": config.views}, build)
