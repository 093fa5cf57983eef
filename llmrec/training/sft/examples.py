"""Training examples: windows of item rows, turned into tokens when a batch is drawn.

One window per user holds the whole sequence, and every item in it is a target. Sequences longer than the history cap
become overlapping windows, each of which scores only the items that no earlier window scored. `last_item` cuts the
same windows into one row per target, as the papers train; the sum of the losses is the same.

The dataset holds item rows and no token, so that swapping the SidTable means swapping the collator's encoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from torch import Tensor

from llmrec.data.windows import windows
from llmrec.model.prompts import HistoryEncoder
from llmrec.runtime.manifest import JsonObject
from llmrec.training.sft.losses import IGNORED
from llmrec.training.sft.packing import first_fit, pack, row_length
from llmrec.training.tasks.examples import TaskExamples

WORDS_STEP = 64


def build_dataset(
    sequences: Iterable[np.ndarray], max_history: int, targets: Literal["every_item", "last_item"]
) -> Dataset:
    """Training examples of item sequences.

    Args:
        sequences: Item rows of each user, oldest first.
        max_history: Largest number of items before a target.
        targets: `every_item` of a window in one row, or one row per target that ends in it.

    Returns:
        Dataset with `rows` (item rows of the example) and `num_context` (leading items that are not targets).
    """
    rows, num_context = [], []
    for sequence in sequences:
        for start, end, first_target in windows(len(sequence), max_history):
            if targets == "every_item":
                rows.append(sequence[start:end].tolist())
                num_context.append(first_target - start)
                continue
            for target in range(first_target, end):
                rows.append(sequence[start : target + 1].tolist())
                num_context.append(target - start)
    return Dataset.from_dict({"rows": rows, "num_context": num_context})


def num_targets(examples: Dataset) -> int:
    """Items of histories that are trained on in an epoch."""
    return sum(map(len, examples["rows"])) - sum(examples["num_context"])


def fill_last_batch(examples: Dataset, batch_size: int) -> Dataset:
    """Add examples without items, which have no target, until every optimiser step has `batch_size` of them.

    Otherwise the last batch of an epoch depends on the number of processes: accelerate deals whole batches and repeats
    the first examples for the processes that would go without, which are then trained on twice.
    """
    missing = -len(examples) % batch_size
    if missing == 0:
        return examples
    nothing = {"rows": [], "num_context": 0, "task": "", "index": 0}
    blank = {name: [nothing[name]] * missing for name in examples.column_names}
    return concatenate_datasets([examples, Dataset.from_dict(blank, features=examples.features)])


def add_draws(histories: Dataset, num_draws: dict[str, int]) -> Dataset:
    """Examples whose content is drawn anew in every epoch: histories that may be augmented, and those of tasks.

    Args:
        histories: Of `build_dataset`.
        num_draws: Examples of each task in an epoch.

    Returns:
        Dataset with `task` (its name, empty for a history) and `index` (of the draw in its task, or of the history)
        besides `rows` and `num_context`, which tasks leave empty.
    """
    draws = [(name, index) for name, count in num_draws.items() for index in range(count)]
    columns = histories.to_dict()
    return Dataset.from_dict(
        {
            "rows": columns["rows"] + [[]] * len(draws),
            "num_context": columns["num_context"] + [0] * len(draws),
            "task": [""] * len(histories) + [name for name, _ in draws],
            "index": [*range(len(histories)), *(index for _, index in draws)],
        },
        features=Features({**histories.features, "task": Value("string"), "index": Value("int64")}),
    )


@dataclass
class HistoryCollator:
    """Prompts, histories and labels of a batch, and those of tasks.

    Args:
        prefix: Token ids before the history.
        encoder: Tokens of item rows.
        pad_token_id: Token of padding.
        packing: Lay several sequences into one row (packing.py), instead of padding each to the longest.
        tasks: Source of the examples of each task.
        seed: Of all draws.
        epoch: Of all draws; the trainer moves it on (`llmrec.training.sft.trainer.TellEpoch`).
    """

    prefix: list[int]
    encoder: HistoryEncoder
    pad_token_id: int
    packing: bool = False
    tasks: dict[str, TaskExamples] = field(default_factory=dict)
    seed: int = 0
    epoch: int = 0

    def __call__(self, examples: list[JsonObject]) -> dict[str, Tensor]:
        """`input_ids` and `labels`, (B, T) each, with `attention_mask`; packed, (R, T) with `position_ids`.

        With tasks there is also `most_words`, an int: that many labels at most are no SID tokens.
        """
        ids, labels = zip(*self.draw(examples), strict=True)
        lengths = list(map(len, ids))
        bins, size = self.lay_out(lengths)
        batch = {"input_ids": pack(ids, bins, size, self.pad_token_id), "labels": pack(labels, bins, size, IGNORED)}
        if self.packing:
            positions = torch.arange(size)
            batch["position_ids"] = pack([positions[:length] for length in lengths], bins, size, 0)
            return {**batch, "most_words": self._most_words(batch["labels"])} if self.tasks else batch
        ones = torch.ones(size, dtype=torch.int64)
        return {**batch, "attention_mask": pack([ones[:length] for length in lengths], bins, size, 0)}

    def lay_out(self, lengths: list[int]) -> tuple[list[list[int]], int]:
        """Sequences of each row, by their places, and tokens of a row."""
        size = row_length(lengths) if self.packing else max(lengths)
        return first_fit(lengths, size) if self.packing else [[place] for place in range(len(lengths))], size

    def _most_words(self, labels: Tensor) -> int:
        """Labels that are no SID tokens, rounded up so that it has few values; counted here, where the host can."""
        sids = self.encoder.token_range
        count = int(((labels != IGNORED) & ((labels < sids.start) | (labels >= sids.stop))).sum())
        step = max(WORDS_STEP, (1 << (count - 1).bit_length()) // 4)
        return -(-count // step) * step

    def draw(self, examples: list[JsonObject]) -> list[tuple[Tensor, Tensor]]:
        """Token ids and labels of each example, in this epoch."""
        from_histories = iter(self._draw_histories([each for each in examples if not each.get("task")]))
        return [self._draw_task(each) if each.get("task") else next(from_histories) for each in examples]

    def num_tokens(self, examples: Dataset) -> int:
        """Tokens of all examples in this epoch, without padding and the blank ones of `fill_last_batch`."""
        parts = (examples.select(range(i, min(i + 4096, len(examples)))) for i in range(0, len(examples), 4096))
        drawn = (self.draw([each for each in part.to_list() if each["rows"] or each.get("task")]) for part in parts)
        return sum(len(ids) for part in drawn for ids, _ in part)

    def _draw_histories(self, examples: list[JsonObject]) -> Iterator[tuple[Tensor, Tensor]]:
        """All histories in one gather: labels are the tokens of the items that are targets."""
        if not examples:
            return iter(())
        rows, is_target, num_items = flatten(examples)
        prompts = self.encoder.encode_prompts(self.prefix, rows, num_items)
        is_label = np.append(is_target, False)[prompts.items]  # the last entry is what tokens of no item read
        labels = torch.from_numpy(np.where(is_label, prompts.tokens, IGNORED))
        lengths = prompts.lengths.tolist()
        return zip(torch.from_numpy(prompts.tokens).split(lengths), labels.split(lengths), strict=True)

    def _draw_task(self, example: JsonObject) -> tuple[Tensor, Tensor]:
        """Labels are the answer."""
        prompt, answer = self.tasks[example["task"]].draw(self.seed, self.epoch, example["index"], self.encoder)
        ids = torch.from_numpy(np.append(prompt, answer))
        labels = ids.clone()
        labels[: len(prompt)] = IGNORED
        return ids, labels


def flatten(examples: list[JsonObject]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories of B examples, one behind another.

    Returns:
        (n,) item rows, (n,) bool, which of them are targets, and (B,) items of each history.
    """
    rows = np.array(list(itertools.chain.from_iterable(each["rows"] for each in examples)), dtype=np.int64)
    num_items = np.array([len(each["rows"]) for each in examples])
    first_targets = np.cumsum(num_items) - num_items + [each["num_context"] for each in examples]
    return rows, np.arange(len(rows)) >= np.repeat(first_targets, num_items), num_items
