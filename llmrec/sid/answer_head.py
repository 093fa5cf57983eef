"""AnswerHead: answer in one forward pass by a head, instead of writing a semantic ID code by code.

The state at the end of a history ranks all items (`llmrec.model.heads`). Heads `codes` and `vectors` know an item by
its codes alone: it is read as one vector, the mean of the rows of its codes' tokens, and a history has one place for
each item. In a prompt such an item has an id behind all tokens, which no tokenizer knows: `llmrec.model.item_vectors`
puts the vector in its place. For head `projection`, which has vectors of the items to rank by, histories are semantic
IDs as without a head.

Sources: RPG (arXiv:2506.05781), kind `codes`; VQ-Rec (arXiv:2210.12316), kind `vectors`; TokenRec (arXiv:2406.10450),
kind `projection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

HeadKind = Literal["codes", "vectors", "projection"]


@dataclass(frozen=True)
class AnswerHead:
    """Kind of a head, and how sharp its softmax is.

    Args:
        kind: `codes` for one softmax over the codes of each level, `vectors` for one over the items by the vectors
            that they are read as, `projection` for one by vectors of their own.
        temperature: Divisor of the cosines in these softmaxes.

    Raises:
        ValueError: If the kind is unknown, or the temperature is no positive number.
    """

    kind: HeadKind
    temperature: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise ValueError(f"head is '{self.kind}'; choose from {', '.join(get_args(HeadKind))}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"the temperature of the head is {self.temperature!r}; a number above 0 is needed")

    @property
    def by_codes(self) -> bool:
        """Items are read and scored by their codes alone: as one vector each, and alike where they share all codes."""
        return self.kind != "projection"


def refuse_head(head: AnswerHead | None, what: str) -> None:
    """Refuse a model that answers by a head where semantic IDs are written.

    Args:
        head: Head of the vocabulary, or None.
        what: What writes them, as the beginning of a sentence.

    Raises:
        ValueError: If there is a head.
    """
    if head is not None:
        raise ValueError(
            f"{what} needs a model that writes semantic IDs, but this one answers in one pass by the head "
            f"'{head.kind}'. Rank with `llmrec evaluate`, `llmrec recommend` or Recommender, or extend the original "
            "model without `head` and train again."
        )
