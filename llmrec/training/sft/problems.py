"""Refusals of `llmrec sft`: options that do not go with the catalogue and the checkpoint that they name.

Options that contradict each other whatever they name are refused by `SftConfig.problems`.
"""

from __future__ import annotations

from llmrec.configs import SftConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime import processes
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.item_layout import ItemLayout
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.tasks.item_texts import task_problems


def problems(config: SftConfig, catalog: Catalog, vocabulary: SidVocabulary) -> list[str]:
    """List what is wrong with the options of this stage."""
    found = task_problems(config, catalog)
    if processes.sharding() == "FSDP" and (config.train != "full" or config.eval_steps or config.compile):
        found.append(
            "under FSDP train must be 'full', without eval_steps and compile, which need all weights in each process; "
            "launch with recipes/accelerate/ddp.yaml"
        )
    if processes.sharding() == "FSDP" and config.item_decay:
        found.append("item_decay needs whole rows in each process, which FSDP shards; leave it out")
    if vocabulary.head is not None:
        found += head_problems(config, vocabulary.head)
    if vocabulary.has_one_block and config.targets != "last_item":
        found.append(
            f"'{config.model}' writes histories in pieces, which run across items, so an example has one target; set "
            "targets to last_item"
        )
    if vocabulary.layout is not None:
        found += layout_problems(config, vocabulary.layout)
    if config.head_loss != "softmax" and (vocabulary.head is None or vocabulary.head.kind != "projection"):
        found.append(f"head_loss '{config.head_loss}' is of head 'projection', which '{config.model}' does not have")
    if vocabulary.words is not None:
        found += word_problems(config)
    unused = [name for name in ("item_dropout", "item_decay") if getattr(config, name)]
    if vocabulary.items is None and unused:
        found.append(
            f"{', '.join(unused)}: '{config.model}' has no item rows for it; leave it out, or extend with item_rows"
        )
    if vocabulary.items is not None and config.normalize_over == "vocabulary":
        found.append(
            f"'{config.model}' has item tokens, which are never written but would compete with codes in the softmax; "
            "set normalize_over to level"
        )
    if config.content_passes:
        found += content_problems(config, catalog, vocabulary)
    return found


def content_problems(config: SftConfig, catalog: Catalog, vocabulary: SidVocabulary) -> list[str]:
    """List the reasons why content rows cannot be trained."""
    found = []
    has_others = (vocabulary.items, vocabulary.head, vocabulary.words) != (None, None, None)
    if has_others or vocabulary.level_sizes != (catalog.num_items,):
        found.append(
            f"content_passes needs one new token for each of {catalog.num_items} items, and nothing beside it, but "
            f"'{config.model}' has {' x '.join(map(str, vocabulary.level_sizes))} codes or was extended by more; run "
            "`llmrec tokenize --method atomic`, and `llmrec extend` on its result"
        )
    if processes.sharding() == "FSDP":
        found.append("content_passes reads rows by itself, which FSDP shards; launch with recipes/accelerate/ddp.yaml")
    return found


def layout_problems(config: SftConfig, layout: ItemLayout) -> list[str]:
    """List the options that a model with tokens around its items cannot be trained with."""
    found = []
    if config.targets != "last_item" and not layout.asks_in_place:
        found.append(
            f"'{config.model}' is asked behind a text that follows the history, so an example has one target; set "
            "targets to last_item"
        )
    if config.teacher or config.tasks or config.content_passes:
        name = f"'{config.model}' has tokens around its items"
        found.append(f"{name}, which teacher, tasks and content_passes do not write; leave them out")
    return found


def word_problems(config: SftConfig) -> list[str]:
    """List the options that a model cannot be trained with whose items are written in words."""
    name = f"'{config.model}' has items that are written in words"
    found = []
    if config.normalize_over != "vocabulary":
        found.append(f"{name}, which all words of the model compete with; set normalize_over to vocabulary")
    if config.train == "sid_tokens":
        found.append(f"{name}, so no token is new; set train to lora or full")
    return found


def head_problems(config: SftConfig, head: AnswerHead) -> list[str]:
    """List the options that a model cannot be trained with that answers by a head."""
    name = f"'{config.model}' answers by the head '{head.kind}'"
    found = []
    if config.tasks:
        found.append(f"{name}, which writes no semantic IDs or words that tasks ask for; leave tasks out")
    if config.normalize_over == "vocabulary":
        found.append(f"{name}, whose softmax is not over tokens; leave normalize_over out")
    if config.drawn_answers:
        found.append(f"{name}, which learns the teacher's whole distribution at once; leave drawn_answers out")
    if processes.sharding() == "FSDP":
        found.append(f"{name}, which reads rows of the embedding by itself; launch with recipes/accelerate/ddp.yaml")
    return found
