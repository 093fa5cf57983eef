"""Training examples: windows of item rows, turned into tokens when a batch is drawn.

One window per user holds the whole sequence, and every item in it is a target. Sequences longer than the history cap
become overlapping windows, each of which scores only the items that no earlier window scored. `last_item` cuts the
same windows into one row per target, as the papers train; the sum of the losses is the same.

The dataset holds item rows and no token, so that swapping the SidTable means swapping the collator's encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from llmrec.prompts import HistoryEncoder
from llmrec.training.losses import IGNORED
from llmrec.training.packing import first_fit, pack


def windows(length: int, max_history: int) -> Iterator[tuple[int, int, int]]:
    """Windows of at most `max_history` + 1 items that together score each item once.

    Args:
        length: Items of the sequence.
        max_history: Largest number of items before a target.

    Yields:
        (start, end, first_target): the window is [start, end), its targets are [first_target, end). After the first
        window, every target has at least half of `max_history` before it.
    """
    size, stride = max_history + 1, max_history // 2 + 1
    end = min(size, length)
    yield 0, end, 0
    while end < length:
        first_target, end = end, min(end + stride, length)
        yield max(0, end - size), end, first_target


def build_dataset(
    sequences: Iterable[np.ndarray], max_history: int, loss_on: Literal["every_item", "last_item"]
) -> Dataset:
    """Training examples of item sequences.

    Args:
        sequences: Item rows of each user, oldest first.
        max_history: Largest number of items before a target.
        loss_on: `every_item` of a window in one row, or one row per target that ends in it.

    Returns:
        Dataset with `rows` (item rows of the example) and `num_context` (leading items that are not targets).
    """
    rows, num_context = [], []
    for sequence in sequences:
        for start, end, first_target in windows(len(sequence), max_history):
            if loss_on == "every_item":
                rows.append(sequence[start:end].tolist())
                num_context.append(first_target - start)
                continue
            for target in range(first_target, end):
                rows.append(sequence[start : target + 1].tolist())
                num_context.append(target - start)
    return Dataset.from_dict({"rows": rows, "num_context": num_context})


def fill_last_batch(examples: Dataset, batch_size: int) -> Dataset:
    """Add examples without items, which have no target, until every optimiser step has `batch_size` of them.

    Otherwise the last batch of an epoch depends on the number of processes: accelerate deals whole batches and repeats
    the first examples for the processes that would go without, which are then trained on twice.
    """
    missing = -len(examples) % batch_size
    if missing == 0:
        return examples
    blank = Dataset.from_dict({"rows": [[]] * missing, "num_context": [0] * missing}, features=examples.features)
    return concatenate_datasets([examples, blank])


@dataclass
class HistoryCollator:
    """Prompts, histories and labels of a batch.

    Args:
        prefix: Token ids before the history.
        encoder: Tokens of item rows.
        pad_token_id: Token of padding.
        packing: Lay several sequences into one row (`llmrec.training.packing`), instead of padding each to the longest.
    """

    prefix: list[int]
    encoder: HistoryEncoder
    pad_token_id: int
    packing: bool = False

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `labels`, (B, T) each, with `attention_mask`; packed, (R, T) with `position_ids`."""
        ids = [torch.tensor([*self.prefix, *self.encoder.encode_history(each["rows"])]) for each in examples]
        labels = [self._labels(*pair) for pair in zip(ids, examples, strict=True)]
        bins = first_fit(list(map(len, ids))) if self.packing else [[place] for place in range(len(ids))]
        batch = {"input_ids": pack(ids, bins, self.pad_token_id), "labels": pack(labels, bins, IGNORED)}
        if self.packing:
            return {**batch, "position_ids": pack([torch.arange(len(row)) for row in ids], bins, 0)}
        return {**batch, "attention_mask": pack([torch.ones_like(row) for row in ids], bins, 0)}

    def _labels(self, ids: Tensor, example: dict[str, Any]) -> Tensor:
        """Tokens of the items that are targets, IGNORED before them."""
        context = self.encoder.encode_history(example["rows"][: example["num_context"]])
        labels = ids.clone()
        labels[: len(self.prefix) + len(context)] = IGNORED
        return labels
