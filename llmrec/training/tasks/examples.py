"""Examples of alignment tasks, drawn anew in every epoch.

A task goes through its cases in a random order, all of them before any again, so that every item is seen about equally
often. What an example shows depends on (seed, epoch, task, index) alone: not on the order of the batch, the number of
processes, or where a run was resumed. The dataset holds no case and no token, only the index of the draw.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.configs import SftConfig
from llmrec.configs.tasks import SLOT, TASKS, Task
from llmrec.data.catalog import Catalog
from llmrec.model.prompts import HistoryEncoder, Prompt
from llmrec.runtime.console import say
from llmrec.training.tasks.cases import CATEGORY_ITEMS, Cases, CategoryCases, HistoryCases, ItemCases, Texts
from llmrec.training.tasks.item_texts import categories, descriptions

SEPARATOR = ";"  # between titles
ORDER = 2**32 - 1  # an index that no draw has: that of the order of cases
HISTORY_ITEMS = 10  # items that a task shows of a history, as MiniOneRec (2510.24431)
TEXT_TOKENS = 64  # tokens that a task keeps of a text


@dataclass(frozen=True)
class TaskExamples:
    """Examples of one task.

    Args:
        number: Of the task in TASKS, from 1.
        num_draws: Examples of an epoch.
        cases: What is asked about.
        given: Texts that the prompt shows; semantic IDs where None.
        answer: Texts that are learned; semantic IDs where None.
        templates: Token ids before and behind what is given, of each template.
        separator: Token ids between texts that are given.
        eos_token_id: Token that ends a text.
    """

    number: int
    num_draws: int
    cases: Cases
    given: Texts | None
    answer: Texts | None
    templates: list[tuple[np.ndarray, np.ndarray]]
    separator: np.ndarray
    eos_token_id: int

    def draw(self, seed: int, epoch: int, index: int, encoder: HistoryEncoder) -> tuple[np.ndarray, np.ndarray]:
        """One example.

        Args:
            seed: Of the run.
            epoch: From 0.
            index: Of the draw in the epoch, below `num_draws`.
            encoder: Tokens of semantic IDs.

        Returns:
            Token ids of the prompt, and of the answer.
        """
        rng = np.random.default_rng([seed, epoch, self.number, index])
        given, answer = self.cases.case(self.case_of(seed, epoch, index), rng)
        before, behind = self.templates[rng.integers(len(self.templates))]
        prompt = np.concatenate([before, *self._given(given, encoder, rng), behind])
        if self.answer is None:
            return prompt, encoder.encode_history(answer, rng)
        return prompt, np.append(self.answer.tokens[answer[0]], self.eos_token_id)

    def case_of(self, seed: int, epoch: int, index: int) -> int:
        """The case of a draw: the draws of all epochs go through one random order of the cases after another."""
        turn, place = divmod(epoch * self.num_draws + index, len(self.cases))
        return int(order_of_cases(len(self.cases), seed, turn, self.number)[place])

    def _given(self, places: Sequence[int], encoder: HistoryEncoder, rng: np.random.Generator) -> list[np.ndarray]:
        if self.given is None:
            return [encoder.encode_history(places, rng)]
        parts = [part for place in places for part in (self.separator, self.given.tokens[place])]
        return parts[1:]

    def longest(self, num_levels: int) -> int:
        """Tokens that no example exceeds, where a semantic ID has `num_levels`."""
        template = max(len(before) + len(behind) for before, behind in self.templates)
        given = num_levels if self.given is None else self.given.longest + len(self.separator)
        answer = num_levels * CATEGORY_ITEMS if self.answer is None else self.answer.longest + 1
        return template + given * self.cases.most_given + answer


@functools.lru_cache(maxsize=2 * len(TASKS))
def order_of_cases(num_cases: int, seed: int, turn: int, number: int) -> np.ndarray:
    """(num_cases,) int64, the order in which a task goes through its cases at a turn."""
    return np.random.default_rng([seed, turn, number, ORDER]).permutation(num_cases)


def build_tasks(
    config: SftConfig, catalog: Catalog, tokenizer: PreTrainedTokenizerBase, num_histories: int
) -> dict[str, TaskExamples]:
    """Tasks of a run by name, their texts tokenized; none where it names none.

    Args:
        config: Has passed `task_problems`.
        catalog: Items and training sequences.
        tokenizer: Of the extended model.
        num_histories: Examples of next-item prediction in an epoch; what `task_weights` are multiples of.

    Raises:
        ValueError: If no case of a task has the text that it needs.
    """
    if not config.tasks:
        return {}
    encode = functools.partial(Texts.encode, tokenizer=tokenizer, most=TEXT_TOKENS)
    members = categories(catalog)
    sources = {"title": catalog.titles, "description": descriptions(catalog), "category": list(members)}
    needed = {what for name in config.tasks for what in (TASKS[name].given, TASKS[name].answer)}
    texts = {what: encode(source) for what, source in sources.items() if what in needed}
    weights = config.task_weights or [1 / len(config.tasks)] * len(config.tasks)
    built = {}
    for name, weight in zip(config.tasks, weights, strict=True):
        task = TASKS[name]
        given, answer = texts.get(task.given), texts.get(task.answer)
        built[name] = TaskExamples(
            number=1 + list(TASKS).index(name),
            num_draws=max(1, round(weight * num_histories)),
            cases=cases_of(task, config, catalog, given, answer, list(members.values())),
            given=given,
            answer=answer,
            templates=[encode_template(each, tokenizer, config.chat_template) for each in task.templates],
            separator=np.array(tokenizer.encode(SEPARATOR, add_special_tokens=False), dtype=np.int64),
            eos_token_id=tokenizer.eos_token_id,
        )
        announce(name, built[name])
    return built


def cases_of(
    task: Task,
    config: SftConfig,
    catalog: Catalog,
    given: Texts | None,
    answer: Texts | None,
    members: list[np.ndarray],
) -> Cases:
    """What a task asks about, without what has no text for it."""
    if task.given == "category":
        pairs = zip(members, given.is_known, strict=True)
        return CategoryCases([rows if is_known else rows[:0] for rows, is_known in pairs], catalog.num_items)
    every_item = np.ones(catalog.num_items, dtype=bool)
    is_given = every_item if given is None else given.is_known
    is_answer = every_item if answer is None else answer.is_answer
    if task.of_history:
        return HistoryCases(catalog.train.sequences(), HISTORY_ITEMS, is_given, is_answer)
    return ItemCases(is_given & is_answer)


def announce(name: str, task: TaskExamples) -> None:
    """Say what a task goes through.

    Raises:
        ValueError: If there is nothing.
    """
    if len(task.cases) == 0:
        raise ValueError(
            f"Task '{name}' has no case: the texts it needs are empty, longer than {TEXT_TOKENS} tokens or made of "
            "words that the tokenizer does not know, or no training sequence has two items. Leave it out of `tasks`."
        )
    left_out = f" ({task.cases.num_left_out:,} left out: no whole text)" if task.cases.num_left_out else ""
    say(f"sft: task {name}: {task.num_draws:,} examples per epoch from {len(task.cases):,} cases{left_out}")


def encode_template(
    template: str, tokenizer: PreTrainedTokenizerBase, chat_template: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids before and behind what a template gives.

    Args:
        template: Text with one SLOT.
        tokenizer: Of the extended model.
        chat_template: Render it as a user turn; the answer opens the turn after it.
    """
    before, behind = Prompt(template, chat_template).around(SLOT, tokenizer)
    return np.array(before, dtype=np.int64), np.array(behind, dtype=np.int64)
