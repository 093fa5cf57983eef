"""ItemLayout: tokens around the items of a prompt, where a checkpoint does not follow llmrec's one prompt.

In llmrec's own prompt items stand side by side, and nothing stands between history and answer. Checkpoints of other
projects were trained otherwise, and answer as they were trained only if they are asked so:

    prefix, item, separator, item, …, suffix, answer        with item = begin, SID, end and answer = begin, SID

The name of a code's token may also hold another number than the code: LC-Rec and MiniOneRec give tokens to those codes
alone that an item has, in the order of the alphabet (`<a_0>`, `<a_1>`, `<a_10>`).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import chain

from llmrec.runtime.manifest import JsonObject
from llmrec.sid.bounds import LARGEST

BEGIN, END = "<|sid_begin|>", "<|sid_end|>"  # OpenOneRec's and FlashRec's
ONEREC_TEMPLATE = "<s_{letter}_{code}>"
TEXTS = ("separator", "suffix", "begin", "end")


@dataclass(frozen=True)
class ItemLayout:
    """Token ids around items, and the numbers in the names of codes.

    Args:
        separator: Tokens between two items of a history.
        suffix: Tokens between a history and its answer.
        begin: Tokens before every item, the answer as well.
        end: Tokens behind every item of a history.
        numbers: Number in the name of each token, a list per level; None where it is the code.

    Raises:
        ValueError: If a token or number is out of bounds, or a level has a number twice.

    >>> layout = ItemLayout(separator=(7,), suffix=(8, 9), numbers=((0, 1, 10), (3, 4)))
    >>> layout.tokens_per_item, layout.asks_in_place
    (1, False)
    """

    separator: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    numbers: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        levels = self.numbers or ()
        values = [*chain(*(getattr(self, name) for name in TEXTS)), *chain(*levels)]
        if not all(type(value) is int and 0 <= value <= LARGEST for value in values):
            raise ValueError("item layout: token ids and numbers are needed as integers from 0 to 2^31 - 1")
        if any(len(set(level)) < len(level) for level in levels):
            raise ValueError("item layout: a level has the same number twice")

    @property
    def tokens_per_item(self) -> int:
        """Number of tokens that an item of a history takes beside its SID."""
        return len(self.separator) + len(self.begin) + len(self.end)

    @property
    def num_rows(self) -> int:
        """Number of rows that the embedding of a model needs to have the tokens before and behind items."""
        return max((*self.begin, *self.end), default=-1) + 1

    @property
    def asks_in_place(self) -> bool:
        """Tell whether an answer stands where the next item of the history would, so that all items may be targets."""
        return not self.suffix and not self.separator

    @classmethod
    def from_dict(cls, values: JsonObject) -> ItemLayout:
        """Make a layout of its arguments, as JSON has them.

        Raises:
            ValueError: As the class.
            TypeError: If a value is of another type.
        """
        lists = {name: tuple(map(operator.index, values.get(name, ()))) for name in TEXTS}
        numbers = values.get("numbers")
        return cls(**lists, numbers=None if numbers is None else tuple(tuple(map(operator.index, n)) for n in numbers))
