"""Cases of alignment tasks: items, positions in training histories, and categories, each with the texts it needs.

A title that was cut, or that has a word unknown to the tokenizer, is not used as an answer. The first does not end
where it seems to, and from the second the model would learn that the unknown word fits everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.sid.tokens.ordinary_text import encode_texts

CATEGORY_ITEMS = 3  # items of a category in one answer, if it has as many


@dataclass(frozen=True)
class Texts:
    """Tokens of texts, encoded once.

    Args:
        tokens: Token ids of each text, cut to a maximum; empty for an empty text.
        is_cut: (n,) bool, True if the text had more tokens.
        has_unknown: (n,) bool, True if a token stands for a word that the tokenizer does not know.
        is_known: (n,) bool, True if at least one token does not.
    """

    tokens: list[np.ndarray]
    is_cut: np.ndarray
    has_unknown: np.ndarray
    is_known: np.ndarray

    @classmethod
    def encode(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int) -> Texts:
        """Tokenize texts as they stand after a word, with a space before them.

        Args:
            texts: Texts; empty where there is none.
            tokenizer: Tokenizer of the extended model.
            most: Number of tokens to keep of each text.
        """
        texts = [text.strip() for text in texts]
        given = [f" {text}" for text in texts if text]
        encoded = iter(encode_texts(given, tokenizer))
        tokens = [next(encoded) if text else np.empty(0, np.int64) for text in texts]
        unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
        return cls(
            tokens=[ids[:most] for ids in tokens],
            is_cut=np.array([len(ids) > most for ids in tokens]),
            has_unknown=np.array([(ids[:most] == unknown).any() for ids in tokens]),
            is_known=np.array([(ids[:most] != unknown).any() for ids in tokens]),
        )

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return max(map(len, self.tokens))

    @property
    def is_answer(self) -> np.ndarray:
        """(n,) bool, True for texts that can be learned to the end."""
        return self.is_known & ~self.has_unknown & ~self.is_cut


class Cases(Protocol):
    """Cases that a task asks about.

    Attributes:
        most_given: Largest number of items, or of categories, that a case shows.
        num_left_out: Number of cases that lack a text that the task needs.
    """

    most_given: int
    num_left_out: int

    def __len__(self) -> int: ...

    def case(self, i: int, rng: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        """Return the item rows, or the one category, that case `i` shows, and the item rows of its answer."""
        ...


class ItemCases:
    """Every item that has the texts of the task.

    Args:
        is_usable: (N,) bool, True for these items.
    """

    most_given = 1

    def __init__(self, is_usable: np.ndarray):
        self.rows = np.flatnonzero(is_usable)
        self.num_left_out = len(is_usable) - len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def case(self, i: int, rng: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        return [self.rows[i]], [self.rows[i]]


class HistoryCases:
    """Every item of a training sequence except the first, with the latest items before it.

    Args:
        sequences: Item rows of each user, oldest first.
        max_history: Largest number of items before the answer.
        is_shown: (N,) bool, True for items that a history can show.
        is_answer: (N,) bool, True for items that can be the answer.
    """

    def __init__(self, sequences: Sequence[np.ndarray], max_history: int, is_shown: np.ndarray, is_answer: np.ndarray):
        self.most_given, self.is_shown = max_history, is_shown
        sizes = np.array([len(sequence) for sequence in sequences])
        self.rows = np.concatenate(sequences)
        places = np.arange(len(self.rows))
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.starts = np.maximum(first, places - max_history)
        shown_before = np.append(0, np.cumsum(is_shown[self.rows]))
        has_history = shown_before[places] > shown_before[self.starts]
        self.places = np.flatnonzero(has_history & is_answer[self.rows])
        self.num_left_out = int((places > first).sum()) - len(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def case(self, i: int, rng: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        place = self.places[i]
        history = self.rows[self.starts[place] : place]
        return history[self.is_shown[history]], [self.rows[place]]


class CategoryCases:
    """Every item with each of its categories; the answer names it first, then a few others of the category.

    Args:
        members: Item rows of each category; empty for a category that is not asked about.
        num_items: Number of items of the catalogue.
    """

    most_given = 1

    @classmethod
    def of(cls, members: Mapping[str, np.ndarray], names: Texts, num_items: int) -> CategoryCases:
        """Cases of the categories whose name the tokenizer knows.

        Args:
            members: Item rows of each category, by its name.
            names: Tokens of the names, in the same order.
            num_items: Number of items of the catalogue.
        """
        pairs = zip(members.values(), names.is_known, strict=True)
        return cls([rows if is_known else rows[:0] for rows, is_known in pairs], num_items)

    def __init__(self, members: Sequence[np.ndarray], num_items: int):
        self.members = members
        self.categories = np.repeat(np.arange(len(members)), [len(rows) for rows in members])
        self.rows = np.concatenate([np.empty(0, np.int64), *members])
        self.num_left_out = num_items - len(np.unique(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def case(self, i: int, rng: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        category, row = self.categories[i], self.rows[i]
        members = self.members[category]
        few = rng.choice(members, min(CATEGORY_ITEMS, len(members)), replace=False)
        return [category], [row, *few[few != row]][:CATEGORY_ITEMS]
