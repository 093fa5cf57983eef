"""Examples of alignment tasks, drawn anew in every epoch.

A task goes through all of its cases in a random order before it repeats one, so every item is seen about equally often.
The content of an example depends on (seed, epoch, task, index) alone, not on the order of the batch, the number of
processes, or the step that a run was resumed from. The dataset holds no case and no token, only the index of the draw.
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
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.model.prompts import Prompt
from llmrec.runtime.console import say
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.tasks.cases import CATEGORY_ITEMS, Cases, CategoryCases, HistoryCases, ItemCases, Texts
from llmrec.training.tasks.item_texts import categories, descriptions

SEPARATOR = ";"  # between titles
ORDER = 2**32 - 1  # stands for the order of cases where draws have their index, which is never as large
HISTORY_ITEMS = 10  # items that a task shows of a history, as MiniOneRec (2510.24431)
TEXT_TOKENS = 64  # tokens that a task keeps of a text


@dataclass(frozen=True)
class TaskExamples:
    """Examples of one task.

    Args:
        number: Position of the task in TASKS, from 1.
        num_draws: Number of examples in an epoch.
        cases: Cases that the task asks about.
        given: Texts that the prompt shows; None for semantic IDs.
        answer: Texts that are learned; None for semantic IDs.
        templates: For each template, the token ids before and after the place of what is given.
        separator: Token ids between given texts.
        eos_token_id: Token id that ends a text.
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
        """Draw one example.

        Args:
            seed: Seed of the run.
            epoch: Epoch, from 0.
            index: Number of the draw in the epoch, below `num_draws`.
            encoder: Token ids of semantic IDs.

        Returns:
            Token ids of the prompt and token ids of the answer, both (tokens,) int64.
        """
        rng = np.random.default_rng([seed, epoch, self.number, index])
        given, answer = self.cases.case(self.case_of(seed, epoch, index), rng)
        before, behind = self.templates[rng.integers(len(self.templates))]
        prompt = np.concatenate([before, *self._given(given, encoder, rng), behind])
        if self.answer is None:
            return prompt, encoder.encode_answer(answer, rng)
        return prompt, np.append(self.answer.tokens[answer[0]], self.eos_token_id)

    def case_of(self, seed: int, epoch: int, index: int) -> int:
        """Index of the case of a draw; the draws of all epochs go through one random order of cases after another."""
        turn, place = divmod(epoch * self.num_draws + index, len(self.cases))
        return int(order_of_cases(len(self.cases), seed, turn, self.number)[place])

    def _given(self, places: Sequence[int], encoder: HistoryEncoder, rng: np.random.Generator) -> list[np.ndarray]:
        if self.given is None:
            return [encoder.encode_history(places, rng)]
        parts = [part for place in places for part in (self.separator, self.given.tokens[place])]
        return parts[1:]

    def longest(self, vocabulary: SidVocabulary) -> int:
        """Number of tokens that no example exceeds, with the items' tokens of a vocabulary."""
        template = max(len(before) + len(behind) for before, behind in self.templates)
        given = vocabulary.tokens_per_item if self.given is None else self.given.longest + len(self.separator)
        answer = vocabulary.num_levels * CATEGORY_ITEMS if self.answer is None else self.answer.longest + 1
        return template + given * self.cases.most_given + answer


@functools.lru_cache(maxsize=2 * len(TASKS))
def order_of_cases(num_cases: int, seed: int, turn: int, number: int) -> np.ndarray:
    """Order in which a task goes through its cases the `turn`-th time, (num_cases,) int64."""
    return np.random.default_rng([seed, turn, number, ORDER]).permutation(num_cases)


def build_tasks(
    config: SftConfig, catalog: Catalog, tokenizer: PreTrainedTokenizerBase, num_histories: int
) -> dict[str, TaskExamples]:
    """Build the tasks of a run, by name, with tokenized texts.

    Args:
        config: Options of the stage, which have passed `task_problems`.
        catalog: Items and training sequences.
        tokenizer: Tokenizer of the extended model.
        num_histories: Number of histories in an epoch; `task_weights` are multiples of it.

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
            cases=CategoryCases.of(members, texts["category"], catalog.num_items)
            if task.given == "category"
            else cases_of(task, catalog, given, answer),
            given=given,
            answer=answer,
            templates=[encode_template(each, tokenizer, config.chat_template) for each in task.templates],
            separator=np.array(tokenizer.encode(SEPARATOR, add_special_tokens=False), dtype=np.int64),
            eos_token_id=tokenizer.eos_token_id,
        )
        announce(name, built[name])
    return built


def cases_of(task: Task, catalog: Catalog, given: Texts | None, answer: Texts | None) -> Cases:
    """List what a task asks about, without the items that lack a text that it needs."""
    every_item = np.ones(catalog.num_items, dtype=bool)
    is_given = every_item if given is None else given.is_known
    is_answer = every_item if answer is None else answer.is_answer
    if task.of_history:
        return HistoryCases(catalog.train.sequences(), HISTORY_ITEMS, is_given, is_answer)
    return ItemCases(is_given & is_answer)


def announce(name: str, task: TaskExamples) -> None:
    """Say how many cases a task has.

    Raises:
        ValueError: If it has none.
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
    """Token ids of a template before and after its SLOT.

    Args:
        template: Text with one SLOT.
        tokenizer: Tokenizer of the extended model.
        chat_template: Render the template as a user turn; the answer opens the turn after it.
    """
    before, behind = Prompt(template, chat_template).around(SLOT, tokenizer)
    return np.array(before, dtype=np.int64), np.array(behind, dtype=np.int64)
