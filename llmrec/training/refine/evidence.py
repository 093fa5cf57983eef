"""Questions that a model is asked about an item: by its title, if the model has learned to, and by its past.

The past of an item are histories that it follows in the training data. No validation or test interaction is read.

Shapes: P prompts, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.configs.tasks import TASKS
from llmrec.data.catalog import Catalog
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.sid.groups import ordinals
from llmrec.training.tasks.cases import HistoryCases, Texts
from llmrec.training.tasks.examples import TEXT_TOKENS, encode_template

TASK = "title_to_sid"  # the task that teaches a model to name items by their texts
CONTEXTS = 8  # most histories of an item
CONTEXT_WEIGHT = 0.5  # weight of all histories of an item beside its texts


class Prompts(NamedTuple):
    """Prompts of some items.

    Attributes:
        tokens: Token ids of each of P prompts.
        owner: (P,) int64 place of the item that each one asks for, ascending.
        weight: (P,) share of each one in the score of its item; those of an item sum to 1.
    """

    tokens: list[np.ndarray]
    owner: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Source of the prompts that ask for items.

    Args:
        encoder: Token ids of histories.
        prefix: Token ids before every history.
        cases: Training histories, each with the item that follows.
        places: For each item, those of the cases that ask for it.
        texts: Titles; None for a model that has not learned to name items by them.
        templates: Token ids before and after a title.
    """

    encoder: HistoryEncoder
    prefix: list[int]
    cases: HistoryCases
    places: list[np.ndarray]
    texts: Texts | None
    templates: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        encoder: HistoryEncoder,
        prefix: list[int],
        max_history: int,
        tokenizer: PreTrainedTokenizerBase | None,
        chat_template: bool,
        seed: int,
    ) -> Evidence:
        """Draw the histories of all items.

        Args:
            catalog: Items and training sequences.
            encoder: Token ids of histories.
            prefix: Token ids before every history.
            max_history: Largest number of items of a history.
            tokenizer: Tokenizer of the model; None if it has not learned to name items by their titles.
            chat_template: Whether questions about titles are user turns.
            seed: Seed of the draw.
        """
        every_item = np.ones(catalog.num_items, bool)
        cases = HistoryCases(catalog.train.sequences(), max_history, every_item, every_item)
        order = np.random.default_rng(seed).permutation(len(cases))
        targets = cases.rows[cases.places[order]]
        kept = first_of_each(targets, CONTEXTS) if len(targets) else np.empty(0, np.int64)
        kept = kept[np.argsort(targets[kept], kind="stable")]
        counts = np.bincount(targets[kept], minlength=catalog.num_items)
        places = np.split(order[kept], counts.cumsum()[:-1])
        if tokenizer is None:
            return cls(encoder, prefix, cases, places, None, [])
        templates = [encode_template(each, tokenizer, chat_template) for each in TASKS[TASK].templates]
        texts = Texts.encode(catalog.titles, tokenizer, TEXT_TOKENS)
        return cls(encoder, prefix, cases, places, texts, templates)

    @property
    def most_prompts(self) -> int:
        """Largest number of prompts of an item."""
        return CONTEXTS + len(self.templates)

    def prompts(self, rows: Sequence[int] | np.ndarray) -> Prompts:
        """Make the prompts of some items; an item without a known title and without a past has none."""
        rng = np.random.default_rng(0)  # asked for by the interface; a history here is read as it is
        tokens: list[np.ndarray] = []
        owner: list[int] = []
        weight: list[float] = []
        for place, row in enumerate(rows):
            asked = [np.concatenate([before, self.texts.tokens[row], behind]) for before, behind in self.templates
                     if self.texts is not None and self.texts.is_known[row]]  # fmt: skip
            histories = [self.cases.case(case, rng)[0] for case in self.places[row]]
            weights = [1 / max(1, len(asked))] * len(asked) + [CONTEXT_WEIGHT / max(1, len(histories))] * len(histories)
            tokens += [*asked, *(self._read(history) for history in histories)]
            owner += [place] * len(weights)
            weight += [each / sum(weights) for each in weights]
        return Prompts(tokens, np.array(owner, np.int64), np.array(weight))

    def _read(self, history: Sequence[int]) -> np.ndarray:
        return self.encoder.encode_prompts(self.prefix, history, [len(history)]).tokens


def first_of_each(groups: np.ndarray, most: int) -> np.ndarray:
    """Positions of the first `most` entries of each group, ascending; `groups` is (n,) int64, at least one."""
    return np.flatnonzero(ordinals(groups[:, np.newaxis])[0] < most)
