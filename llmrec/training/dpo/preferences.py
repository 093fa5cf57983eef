"""Preferences: prompts, the items that came next, and the items that these are preferred to; as examples and batches.

Shapes: B prompts, T tokens, M negatives, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import List as ListOf
from torch import Tensor

from llmrec.model.history.encoder import HistoryEncoder
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY
from llmrec.training.preference.policy import Prompts, check_batch


@dataclass(frozen=True)
class Preferences:
    """Prompts with their negatives.

    Attributes:
        prompts: Prompts and their targets.
        negatives: Item rows of the negatives of each prompt.
        sources: Name of the source of each negative.
        ranks: Rank of each negative among the model's beams, -1 for those of another source.
        oracle: Probability of each pair that the target is preferred; None if it is not known.
    """

    prompts: Prompts
    negatives: list[np.ndarray]
    sources: list[list[str]]
    ranks: list[np.ndarray]
    oracle: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.negatives)

    def take(self, places: Sequence[int]) -> Preferences:
        """Select the preferences of the given prompts, in the given order."""
        return Preferences(
            self.prompts.take(places),
            [self.negatives[i] for i in places],
            [self.sources[i] for i in places],
            [self.ranks[i] for i in places],
            self.oracle and [self.oracle[i] for i in places],
        )

    def sample(self, count: int, seed: int) -> Preferences:
        """Select the preferences of `count` random prompts, or of all if there are no more, in their order."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]).tolist())

    def whole_batches(self, batch_size: int, seed: int) -> Preferences:
        """Drop a few at random, so that every optimiser step of an epoch has `batch_size` prompts.

        A last step of fewer prompts would weigh them more, and accelerate would repeat some to share it out.

        Raises:
            ValueError: If there are fewer than one batch.
        """
        check_batch(len(self), batch_size)
        return self.sample(len(self) // batch_size * batch_size, seed)

    def examples(self) -> Dataset:
        """Examples of the trainer: item rows of `history` and `items` (target first), `smoothing` of each pair."""
        if self.oracle is None:
            smoothing = [[0.0] * len(negatives) for negatives in self.negatives]
        else:
            smoothing = [np.clip(1 - each, 0, 0.5).tolist() for each in self.oracle]
        return Dataset.from_dict(
            {
                "history": [history.tolist() for history in self.prompts.histories],
                "items": [[int(t), *n] for t, n in zip(self.prompts.targets, self.negatives, strict=True)],
                "smoothing": smoothing,
            },
            features=Features(
                history=ListOf(Value("int64")), items=ListOf(Value("int64")), smoothing=ListOf(Value("float64"))
            ),
        )


@dataclass
class PreferenceCollator:
    """Prompts, completions and smoothing of a batch.

    Args:
        prefix: Token ids before the history.
        encoder: Turns item rows into tokens.
        max_history: Latest items of a history that are shown.
        pad_token_id: Token of padding.
    """

    prefix: list[int]
    encoder: HistoryEncoder
    max_history: int
    pad_token_id: int

    def __call__(self, examples: list[JsonObject]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T), `completions` (B, 1 + M, L), target first, `smoothing` (B, M)."""
        histories = [each["history"][-self.max_history :] for each in examples]
        ids, mask = self.encoder.pad_prompts(self.prefix, histories, self.pad_token_id)
        most = max(len(each["items"]) for each in examples)
        completions = np.full((len(examples), most, self.encoder.tokens_NL.shape[1]), EMPTY)
        smoothing = np.zeros((len(examples), most - 1), np.float32)
        for number, each in enumerate(examples):
            completions[number, : len(each["items"])] = self.encoder.tokens_NL[each["items"]]
            smoothing[number, : len(each["smoothing"])] = each["smoothing"]
        arrays = {"input_ids": ids, "attention_mask": mask, "completions": completions}
        return {name: torch.from_numpy(array) for name, array in {**arrays, "smoothing": smoothing}.items()}
