"""ItemTokens: one token for each item, behind the blocks of the semantic IDs.

In a prompt an item is its SID followed by its own token; an answer is the SID alone. The embedding of the tokens is the
matrix of the *item rows*: it is read where a history is read, and it scores all items in one product where the next
item is asked for. Tokens stand in the order of the catalogue, so the token of an item row is `start + row`. Before them
stands one token that stands in for any item whose own token training hides.

Source: items as tokens of an LLM with full softmax, tied as in SASRec (arXiv:1808.09781, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.sid.tokens.template import fields_of

DEFAULT_TEMPLATE = "<|item_{row}|>"
STAND_IN = "<|item|>"


@dataclass(frozen=True)
class ItemTokens:
    """Token ids of all items.

    Args:
        start: Token id of item row 0.
        num_items: Number of items, N.
        template: Text of a token, with `{row}`, the item row.

    Raises:
        ValueError: If there is no item, or the template names anything but the row.

    Examples:
        >>> from llmrec.sid.item_tokens import ItemTokens
        >>> items = ItemTokens(start=108, num_items=3)
        >>> items.block, items.tokens()
        (slice(108, 111, None), ['<|item|>', '<|item_0|>', '<|item_1|>', '<|item_2|>'])
    """

    start: int
    num_items: int
    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        if not (type(self.num_items) is int and type(self.start) is int and self.num_items >= 1 and self.start >= 1):
            raise ValueError(
                f"item tokens: num_items {self.num_items!r} and start {self.start!r} are needed as integers from 1; "
                "item tokens need at least one item."
            )
        if fields_of(self.template) != ["row"]:
            raise ValueError(f"item tokens: template {self.template!r} must name {{row}} once, and nothing else.")

    @property
    def stand_in(self) -> int:
        """Token id that stands in for any item."""
        return self.start - 1

    @property
    def block(self) -> slice:
        """Slice of the items' own tokens in the embedding matrix."""
        return slice(self.start, self.start + self.num_items)

    @classmethod
    def required(cls, items: ItemTokens | None) -> ItemTokens:
        """Return the item tokens of a vocabulary.

        Raises:
            ValueError: If it has none.
        """
        if items is None:
            raise ValueError(
                "This checkpoint has no item rows, so it ranks by 'sid' only; `llmrec extend --item-rows` and `llmrec "
                "sft` make one that has them."
            )
        return items

    def tokens(self) -> list[str]:
        """List the text of the token that stands in for items, and of those of the items in the order of their rows."""
        return [STAND_IN, *(self.template.format(row=row) for row in range(self.num_items))]
