"""sft: fine-tune the extended LLM on the training sequences, and save it merged and ready to recommend.

If it is interrupted, the same command continues from the newest checkpoint that is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from llmrec.configs import CHECKPOINTS, TRAINING, SftConfig
from llmrec.data.catalog import Catalog
from llmrec.model.backbone import causal_lm, compile_layers
from llmrec.model.checkpoint import SidConfig, load_tokenizer
from llmrec.model.heads.choice import make_head
from llmrec.model.heads.content_rows import read_content
from llmrec.model.history.choice import make_history_encoder
from llmrec.model.prompts import Prompt, most_prompt_tokens
from llmrec.runtime.console import say, tell
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject, read_manifest, verify
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.distil.distillation import Distillation
from llmrec.training.distil.query_collator import QueryCollator
from llmrec.training.mixture import choose_mixture
from llmrec.training.regime import warnings_of
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.content import CONTENT, ContentExamples, ContentTrainer
from llmrec.training.sft.cutting import cut
from llmrec.training.sft.dropout import residual_dropout
from llmrec.training.sft.examples import HistoryCollator, add_draws, fill_last_batch, num_targets
from llmrec.training.sft.item_loss import ItemLoss
from llmrec.training.sft.losses import IGNORED, ExtraLoss, sid_loss_in_forward
from llmrec.training.sft.mutual import MutualTerm
from llmrec.training.sft.packing import check_packing
from llmrec.training.sft.problems import problems
from llmrec.training.sft.trainer import make_trainer, train
from llmrec.training.start import RunInputs, check, check_length, context_of, make_validation, phases, save_checkpoint
from llmrec.training.tasks.examples import TaskExamples, build_tasks
from llmrec.training.trainer import SidTrainer
from llmrec.training.validation import Validation, best_step, tell_best_step
from llmrec.training.weights import load_trainable, merge


def main(config: SftConfig) -> JsonObject:
    """Fine-tune and save the merged model.

    Args:
        config: Options of the stage.

    Returns:
        `out` and the counts of the manifest.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue cannot be used.
    """
    start = load(config)

    def build(directory: Path) -> JsonObject:
        trainer, counts = fine_tune(config, start, directory)
        trained = trainer.gather_weights()
        if trainer.is_world_process_zero():
            save(config, start, trainer, trained, counts, directory)
        return counts

    teachers = {f"teacher {number}": directory for number, directory in enumerate(config.teacher, 1)}
    out = run_stage("sft", config, {"catalog": config.catalog, "model": config.model, **teachers}, build)
    return {"out": str(out), **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    speed = f"{result['tokens_per_second']:,} tokens/s"
    tell(f"sft: {result['steps']} steps, last loss {result['loss']:.4f}, {speed} -> {result['out']}")
    tell_best_step("sft", result)


def load(config: SftConfig) -> RunInputs:
    """Read and check everything except the weights.

    Raises:
        ValueError: If the config, the checkpoint or the catalogue cannot be used.
    """
    verify(config.model, *CHECKPOINTS)
    for directory in config.teacher:
        verify(directory, "teach")
    catalog = Catalog.load(config.catalog)
    sid_config, table, details = SidConfig.load(config.model)
    check(
        config, catalog, table.item_ids, details.get("catalog_sha256"), problems(config, catalog, sid_config.vocabulary)
    )
    tokenizer = load_tokenizer(config.model)
    sid_config.vocabulary.check(tokenizer)
    prompt = Prompt(config.instruction, config.chat_template)
    if sid_config.vocabulary.layout is not None and prompt == Prompt():
        prompt = sid_config.prompt  # the text that its project has trained it with
    prefix = prompt.prefix(tokenizer)
    most_tokens = most_prompt_tokens(prefix, config.max_history + 1, sid_config.vocabulary)
    check_length(config.model, config.max_history, most_tokens)
    if not details.keys().isdisjoint(TRAINING) and (prompt, config.max_history) != (
        sid_config.prompt,
        sid_config.max_history,
    ):
        say("sft: instruction, chat_template or max_history differ from the earlier phase's; this phase's are saved.")
    for warning in warnings_of(config, details, phases(details)):
        say(f"{config.stage}: {warning}")
    sid_config = dataclasses.replace(
        sid_config, prompt=prompt, max_history=config.max_history, normalize_over=config.normalize_over
    )
    return RunInputs(catalog, sid_config, table, details, tokenizer, prefix)


Tasks = dict[str, TaskExamples | ContentExamples]


@dataclass(frozen=True)
class TrainingParts:
    """Data and model of a run.

    Attributes:
        examples: Examples of an epoch.
        collator: Collator that turns them into tokens.
        validation: Validation examples and their ranker, if there is validation.
        model: Model to train.
        device: Device to train on.
        dtype: Type of matrix products and of frozen weights.
        distillation: Teacher that the model learns from, if there is one.
        item_loss: Loss of item rows or of a head, if there are any.
        mutual: Term that holds content rows and the rows of the items' tokens together, with content passes.
    """

    examples: Dataset
    collator: HistoryCollator
    validation: Validation | None
    model: PreTrainedModel | PeftModel
    device: torch.device
    dtype: torch.dtype
    distillation: Distillation | None
    item_loss: ItemLoss | None
    mutual: MutualTerm | None


def fine_tune(config: SftConfig, start: RunInputs, directory: Path) -> tuple[SidTrainer, JsonObject]:
    """Train in a directory, or continue a run that was interrupted in it.

    Returns:
        The trainer after training, and the counts of the manifest.
    """
    examples, tasks = make_examples(config, start.catalog, start.tokenizer, start.sid_config.vocabulary)
    parts = make_parts(config, start, examples, tasks)
    fills = (start.tokenizer.pad_token_id, 0, IGNORED)
    vocabulary = start.sid_config.vocabulary
    reads_one = vocabulary.has_one_block or (vocabulary.head is not None and vocabulary.head.by_codes)
    shortest = 1 if reads_one else int(start.table.lengths.min())
    captured = CapturedLoss.of(config, parts.model, shortest, fills, parts.device)
    trainer_class = SidTrainer if parts.mutual is None else functools.partial(ContentTrainer, parts.mutual)
    with open_trainer(config, start, parts, directory, captured, trainer_class=trainer_class) as trainer:
        counts = {**train(trainer, parts.collator, directory), **best_step(trainer.state)}
        if start.sid_config.vocabulary.items is not None and parts.item_loss and trainer.validation is not None:
            counts |= choose_mixture(trainer.validation, trainer.accelerator)
    return trainer, {**counts, "task_examples": sum(task.num_draws for task in tasks.values())}


def make_parts(config: SftConfig, start: RunInputs, examples: Dataset, tasks: Tasks) -> TrainingParts:
    """Load the model, and make what draws and validates its examples.

    Args:
        config: Options of the stage.
        start: Inputs of the run.
        examples: Examples of `make_examples`.
        tasks: Tasks of `make_examples`, with the content of items.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    encoder = make_history_encoder(start.table, start.sid_config.vocabulary)
    pad_token_id = start.tokenizer.pad_token_id
    options = (start.prefix, encoder, pad_token_id, config.packing, tasks, config.seed)
    distillation = Distillation.of(config, start, encoder, device)
    validation = make_validation(config, start, num_targets(examples))
    model = make_model(config, start.sid_config, dtype)
    head = make_head(model, encoder, start.sid_config.vocabulary, device, config.head_loss)
    item_loss = ItemLoss.of(config, start.sid_config.vocabulary, head)
    if distillation is None and item_loss is None:
        collator = HistoryCollator(*options, item_dropout=config.item_dropout)
    else:
        collator = QueryCollator(*options, item_dropout=config.item_dropout, drawn_answers=config.drawn_answers)
    if config.masked_epochs:
        collator.masked_from = int(config.epochs) - config.masked_epochs
    mutual = MutualTerm.of(config, start.sid_config.vocabulary)
    if mutual is not None:
        read_content(causal_lm(model), start.sid_config.vocabulary)
    return TrainingParts(examples, collator, validation, model, device, dtype, distillation, item_loss, mutual)


@contextlib.contextmanager
def open_trainer(
    config: SftConfig,
    start: RunInputs,
    parts: TrainingParts,
    directory: Path,
    captured: CapturedLoss | None = None,
    extra_loss: ExtraLoss | None = None,
    trainer_class: Callable[..., SidTrainer] = SidTrainer,
) -> Iterator[SidTrainer]:
    """Make the trainer of a run, whose model computes its loss and drops units out inside the context.

    Args:
        config: Options of the stage.
        start: Inputs of the run.
        parts: Data and model of the run.
        directory: Directory of the run.
        captured: CUDA graphs of the steps, if they are captured.
        extra_loss: Loss that is added to the cross-entropy; see `sid_loss_in_forward`.
        trainer_class: Class of the trainer, with the arguments of `SidTrainer`.
    """
    model, vocabulary = parts.model, start.sid_config.vocabulary
    teach = None if parts.distillation is None else parts.distillation.teach
    loss_options = (
        config.normalize_over, config.label_smoothing, captured, extra_loss, teach, parts.item_loss, parts.mutual
    )  # fmt: skip
    with residual_dropout(model, config.dropout), sid_loss_in_forward(model, vocabulary, *loss_options):
        yield make_trainer(
            config, model, start.tokenizer, parts.examples, parts.collator, directory, parts.device, parts.dtype,
            parts.validation, trainer_class,
        )  # fmt: skip


def make_model(config: SftConfig, sid_config: SidConfig, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """Load the model that trains, and seed all random numbers."""
    set_seed(config.seed)
    model = load_trainable(config, sid_config.vocabulary, dtype)
    if config.packing:
        check_packing(model)
    if config.compile:
        compile_layers(model)
    return model


def save(
    config: SftConfig,
    start: RunInputs,
    trainer: SidTrainer,
    trained: PreTrainedModel | PeftModel,
    counts: JsonObject,
    directory: Path,
) -> None:
    """Merge what was trained, and write it with tokenizer, semantic IDs, recipe, log and model card."""
    dtype = resolve_dtype(config.precision, resolve_device(config.device))
    merged = merge(trained, config, dtype, directory / SCRATCH)
    if "mixture_weight" in counts:
        sid_config = dataclasses.replace(start.sid_config, mixture_weight=counts["mixture_weight"])
        start = dataclasses.replace(start, sid_config=sid_config)
    save_checkpoint(config, start, merged, trainer.state.log_history, counts, directory)


def make_examples(
    config: SftConfig, catalog: Catalog, tokenizer: PreTrainedTokenizerBase, vocabulary: SidVocabulary
) -> tuple[Dataset, Tasks]:
    """Make the examples of an epoch, and what draws some of them: tasks, and the content of items.

    Raises:
        ValueError: If a task has nothing to draw, or does not fit the model's context.
    """
    histories = cut(*catalog.train.joined(), config.max_history, config.targets)
    tasks = build_tasks(config, catalog, tokenizer, len(histories))
    content = ContentExamples.of(config, catalog, tokenizer, vocabulary) if config.content_passes else None
    drawn: Tasks = {**tasks} if content is None else {**tasks, CONTENT: content}
    context = context_of(config.model)
    for name, task in drawn.items():
        if context and task.longest(vocabulary) > context:
            raise ValueError(
                f"An example of task '{name}' takes up to {task.longest(vocabulary)} tokens but the model's context is "
                f"{context}; leave the task out."
            )
    num_draws = {name: task.num_draws for name, task in tasks.items()}
    examples = add_draws(histories if config.histories else histories.select([]), num_draws)
    examples = fill_last_batch(examples, config.batch_size)
    return examples if content is None else content.add_to(examples), drawn
