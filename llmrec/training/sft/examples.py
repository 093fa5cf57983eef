"""Training examples: windows of item rows, which become tokens when a batch is drawn.

One window per user holds the whole sequence, and every item in it is a target. Sequences longer than the history cap
become overlapping windows, each of which scores only the items that no earlier window scored. `last_item` cuts the same
windows into one example per target, as the papers train; the sum of the losses is the same.

The dataset holds item rows and no token, so that another SidTable needs only another encoder of the collator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from torch import Tensor

from llmrec.model.history.encoder import EncodedPrompts, HistoryEncoder
from llmrec.training.sft.cutting import HISTORY_COLUMNS, cut
from llmrec.training.sft.losses import IGNORED
from llmrec.training.sft.packing import first_fit, pack, row_length

MOST_MASKED = 0.5  # largest share of a history that masked epochs leave out
RNG_ROWS = 8  # item rows of a batch that its random numbers depend on, so that they differ between batches
WORDS_STEP = 64  # label counts of words are rounded up to a multiple of this, so that they have few values


class Example(TypedDict, total=False):
    """One entry of the dataset.

    Keys:
        rows: Item rows of a history and its targets; empty for an example of a task.
        num_context: Number of leading items that are not targets.
        user: Number of the training sequence that they are of.
        start: Place of the first of them in that sequence.
        task: Name of the task; absent or empty for a history.
        index: Number of the draw within its task.
    """

    rows: list[int]
    num_context: int
    user: int
    start: int
    task: str
    index: int


class DrawnExamples(Protocol):
    """Examples that are drawn anew in every epoch, as those of a task."""

    def draw(self, seed: int, epoch: int, index: int, encoder: HistoryEncoder) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a prompt and of its answer; `llmrec.training.tasks.examples` explains the arguments."""
        ...


BLANK = Example(rows=[], num_context=0, user=0, start=0, task="", index=0)


def build_dataset(
    sequences: Iterable[np.ndarray], max_history: int, targets: Literal["every_item", "last_item"]
) -> Dataset:
    """Cut item sequences into training examples.

    Args:
        sequences: Item rows of each user, oldest first.
        max_history: Largest number of items before a target.
        targets: `every_item` makes one example of each window, `last_item` one example of each target.

    Returns:
        Dataset with the columns of `Example` that a history has.
    """
    sequences = list(sequences)
    rows = np.concatenate([np.empty(0, np.int64), *sequences])
    return cut(rows, np.cumsum([0, *map(len, sequences)]), max_history, targets)


def num_targets(examples: Dataset) -> int:
    """Count the items of histories that are trained on in an epoch."""
    table = examples.with_format("arrow")[:]
    counts = (pc.list_value_length(table["rows"]), table["num_context"])
    entries, context = (pc.sum(column).as_py() or 0 for column in counts)
    return entries - context


def fill_last_batch(examples: Dataset, batch_size: int) -> Dataset:
    """Add blank examples, which have no target, until every optimiser step has `batch_size` examples.

    Otherwise the last batch of an epoch would depend on the number of processes: accelerate deals whole batches and
    repeats the first examples for the processes that would go without, which are then trained on twice.
    """
    missing = -len(examples) % batch_size
    if missing == 0:
        return examples
    blank = {name: [BLANK.get(name)] * missing for name in examples.column_names}
    return concatenate_datasets([examples, Dataset.from_dict(blank, features=examples.features)])


def add_draws(histories: Dataset, num_draws: dict[str, int]) -> Dataset:
    """Add the examples of tasks, whose content is drawn anew in every epoch.

    Args:
        histories: Dataset of `build_dataset`.
        num_draws: Number of examples of each task in an epoch.

    Returns:
        Dataset with all columns of `Example`.
    """
    draws = [(name, index) for name, count in num_draws.items() for index in range(count)]
    features = Features({**histories.features, "task": Value("string"), "index": Value("int64")})
    drawn = {
        **{name: [BLANK.get(name)] * len(draws) for name in HISTORY_COLUMNS},
        "task": [name for name, _ in draws],
        "index": [index for _, index in draws],
    }
    table = histories.with_format("arrow")[:]
    for name, fill in (("task", ""), ("index", 0)):
        table = table.append_column(
            name, pa.repeat(pa.scalar(fill, features.arrow_schema.field(name).type), len(table))
        )
    return concatenate_datasets([Dataset(table), Dataset.from_dict(drawn, features=features)])


@dataclass
class HistoryCollator:
    """Turns examples of histories and of tasks into the tokens and labels of a batch.

    Args:
        prefix: Token ids before the history.
        encoder: Token ids of items.
        pad_token_id: Token id of padding.
        packing: Pack several sequences into one row (packing.py), instead of padding each to the longest.
        tasks: Source of the examples of each task, by name.
        seed: Seed of all draws.
        epoch: Epoch of all draws; the trainer sets it (`llmrec.training.sft.trainer.EpochOfCollator`).
        item_dropout: Share of the item tokens in histories that are hidden, by the one that stands in for any item.
        masked_from: Epoch from which on histories are masked; None for never.
    """

    prefix: list[int]
    encoder: HistoryEncoder
    pad_token_id: int
    packing: bool = False
    tasks: Mapping[str, DrawnExamples] = field(default_factory=dict)
    seed: int = 0
    epoch: int = 0
    item_dropout: float = 0.0
    masked_from: int | None = None

    def __call__(self, examples: list[Example]) -> dict[str, Tensor | int]:
        """Make a batch.

        Returns:
            `input_ids` and `labels`, (B, T) each, with `attention_mask`; if packed, (R, T) with `position_ids`. A
            packed batch with tasks also has `most_words`, an int: at most that many labels are not SID tokens.
        """
        return self.batch(self.draw(self.shown(examples)))

    def shown(self, examples: list[Example]) -> list[Example]:
        """Examples as this epoch shows them, masked or whole."""
        if self.masked_from is None or self.epoch < self.masked_from:
            return examples
        return [masked(each, self.seed, self.epoch) for each in examples]

    def batch(self, sequences: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor | int]:
        """Make the batch of some token ids and labels, as `draw` returns them; see `__call__`."""
        ids, labels = zip(*sequences, strict=True)
        lengths = list(map(len, ids))
        bins, size = self.lay_out(lengths)
        input_ids, packed_labels = pack(ids, bins, size, self.pad_token_id), pack(labels, bins, size, IGNORED)
        batch: dict[str, Tensor | int] = {"input_ids": input_ids, "labels": packed_labels}
        if self.packing:
            positions = torch.arange(size)
            batch["position_ids"] = pack([positions[:length] for length in lengths], bins, size, 0)
            return {**batch, "most_words": self._most_words(packed_labels)} if self.tasks else batch
        ones = torch.ones(size, dtype=torch.int64)
        return {**batch, "attention_mask": pack([ones[:length] for length in lengths], bins, size, 0)}

    def lay_out(self, lengths: list[int]) -> tuple[list[list[int]], int]:
        """Choose the sequences of each row, by their positions in `lengths`, and the number of tokens of a row."""
        size = row_length(lengths) if self.packing else max(lengths)
        return first_fit(lengths, size) if self.packing else [[place] for place in range(len(lengths))], size

    def starts(self, lengths: list[int]) -> np.ndarray:
        """(S,) position of the first token of each of S sequences in the flattened batch."""
        starts = np.zeros(len(lengths), np.int64)
        bins, row_tokens = self.lay_out(lengths)
        for row, sequences in enumerate(bins):
            before = np.cumsum([0, *(lengths[each] for each in sequences[:-1])])
            starts[sequences] = row * row_tokens + before
        return starts

    def _most_words(self, labels: Tensor) -> int:
        """Count labels that are not SID tokens, rounded up to few values; here the host can count without waiting."""
        sids = self.encoder.token_range
        count = int(((labels != IGNORED) & ((labels < sids.start) | (labels >= sids.stop))).sum())
        step = max(WORDS_STEP, (1 << (count - 1).bit_length()) // 4)
        return -(-count // step) * step

    def draw(self, examples: list[Example]) -> list[tuple[Tensor, Tensor]]:
        """Token ids and labels of each example, as this epoch draws them."""
        from_histories = iter(self._draw_histories([each for each in examples if not each.get("task")]))
        return [self._draw_task(each) if each.get("task") else next(from_histories) for each in examples]

    def num_tokens(self, examples: Dataset) -> int:
        """Count the tokens of all examples in this epoch, without padding and the examples of `fill_last_batch`."""
        parts = (examples.select(range(i, min(i + 4096, len(examples)))) for i in range(0, len(examples), 4096))
        real = ([each for each in part.to_list() if each["rows"] or each.get("task")] for part in parts)
        return sum(len(ids) for part in real for ids, _ in self.draw(self.shown(part)))

    def _draw_histories(self, examples: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
        """Encode all histories in one gather; the labels are the SIDs of the targets."""
        if not examples:
            return iter(())
        rows, is_target, num_items = flatten(examples)
        prompts = self.encode_prompts(examples, rows, num_items, is_target)
        is_label = np.append(is_target, False)[prompts.items] & prompts.is_answer  # item -1 is the appended entry
        labels = torch.from_numpy(np.where(is_label, prompts.tokens, IGNORED))
        lengths = prompts.lengths.tolist()
        return zip(torch.from_numpy(prompts.tokens).split(lengths), labels.split(lengths), strict=True)

    def encode_prompts(
        self, examples: list[Example], rows: np.ndarray, num_items: np.ndarray, is_target: np.ndarray | None = None
    ) -> EncodedPrompts:
        """Encode prompts of histories that lie one behind another, as this epoch draws them, with hidden item tokens.

        Args:
            examples: Example that each history is of, or begins.
            rows: (n,) item rows of all histories.
            num_items: (B,) number of items of each history.
            is_target: (n,) bool, items whose answers are learned; none when left out.
        """
        rngs, items = self.rngs(examples), self.encoder.items
        prompts = self.encoder.encode_prompts(self.prefix, rows, num_items, is_target, rngs)
        if self.item_dropout == 0 or items is None:
            return prompts
        rng = np.random.default_rng((self.seed, self.epoch, len(rows), *rows[:RNG_ROWS].tolist()))
        is_hidden = (prompts.tokens >= items.start) & (rng.random(len(prompts.tokens)) < self.item_dropout)
        return prompts._replace(tokens=np.where(is_hidden, items.stand_in, prompts.tokens))

    def rngs(self, examples: Iterable[Example]) -> Iterator[np.random.Generator]:
        """Generator of each history, told from all others of the epoch by user, start and length."""
        places = ((each["user"], each["start"], len(each["rows"])) for each in examples)
        return (np.random.default_rng((self.seed, self.epoch, *place)) for place in places)

    def _draw_task(self, example: Example) -> tuple[Tensor, Tensor]:
        """Encode a question and its answer; the labels are the answer."""
        prompt, answer = self.tasks[example["task"]].draw(self.seed, self.epoch, example["index"], self.encoder)
        ids = torch.from_numpy(np.append(prompt, answer))
        labels = ids.clone()
        labels[: len(prompt)] = IGNORED
        return ids, labels


def flatten(examples: list[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join the histories of B examples, one after another.

    Returns:
        (n,) int64 item rows, (n,) bool, which of them are targets, and (B,) int64, the number of items of each history.
    """
    rows = np.array(list(itertools.chain.from_iterable(each["rows"] for each in examples)), dtype=np.int64)
    num_items = np.array([len(each["rows"]) for each in examples], dtype=np.int64)  # also of none
    first_targets = np.cumsum(num_items) - num_items + [each["num_context"] for each in examples]
    return rows, np.arange(len(rows)) >= np.repeat(first_targets, num_items), num_items


def masked(example: Example, seed: int, epoch: int) -> Example:
    """Leave items of a history out at random, and ask for its last item alone; tasks and blanks stay as they are.

    Args:
        example: Window of a training sequence.
        seed: Seed of the run.
        epoch: Epoch of the draw.

    Source: fine-tuning of CLLM4Rec (arXiv:2311.01343, section 4.5). Departures: the share that is left out is drawn
    for each history, where the released code leaves out a fifth; the target is the item after the history, as one item
    is held out for each user here, where the paper takes the items that are left out.
    """
    rows = example["rows"]
    if not rows:
        return example
    rng = np.random.default_rng((seed, epoch, example["user"], example["start"]))
    is_kept = np.append(rng.random(len(rows) - 1) >= rng.uniform(0, MOST_MASKED), True)
    kept = [row for row, keep in zip(rows, is_kept, strict=True) if keep]
    return {**example, "rows": kept, "num_context": len(kept) - 1}
