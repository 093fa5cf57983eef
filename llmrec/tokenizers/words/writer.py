"""TextWriter: texts in the tokens of an LLM, as they stand in a history of items that `;` ends.

A token of a text depends on what stands before it, the space in most tokenizers. So a text is tokenized behind the end
of another one, and a tokenizer that would merge the two is refused. A `;` within a text is read as a comma.

Methods that write items in words (titles, keywords) share this, and the numbers that tell items apart which would be
written alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.sid.tokens.llm_tokenizer import MICRO, load_tokenizer, word_tokenizer
from llmrec.sid.tokens.ordinary_text import encode_texts
from llmrec.sid.tokens.template import end_of_sequence

if TYPE_CHECKING:  # it takes a second to import
    from transformers import PreTrainedTokenizerBase

Sequences = list[tuple[int, ...]]  # tokens of items

END = ";"
ESCAPE = str.maketrans({END: ",", "\uff1b": ","})  # also the full-width one, which some tokenizers read as the other
NAMELESS = "item"  # text of an item without one
TRIED = 10_000  # numbers at least that are tried on items that are written alike; a tokenizer of words lacks many


@dataclass(frozen=True)
class TextWriter:
    """Texts in the tokens of an LLM.

    Args:
        llm: Tokenizer of the LLM.

    Attributes:
        end: Token that ends an item: that of `;`, or end-of-sequence where the tokenizer has no such token.

    Raises:
        ValueError: If the tokenizer has neither.
    """

    llm: PreTrainedTokenizerBase

    @classmethod
    def of(cls, llm: str, catalog: Catalog) -> TextWriter:
        """Load the tokenizer of an LLM, or make that of 'micro' as `llmrec extend` does unless told otherwise.

        Args:
            llm: Path, Hub id or 'micro'.
            catalog: Items, whose titles have the words of 'micro'.

        Raises:
            ValueError: If it cannot be loaded.
        """
        return cls(word_tokenizer(catalog.titles, ExtendConfig.micro_words) if llm == MICRO else load_tokenizer(llm))

    @cached_property
    def end(self) -> int:
        """Token that ends every item."""
        ids = encode_texts([END], self.llm)[0].tolist()
        return ids[0] if len(ids) == 1 and ids[0] != self.llm.unk_token_id else end_of_sequence(self.llm)

    def tokens(self, texts: Sequence[str]) -> Sequences:
        """Tokenize texts as they stand in a history, without the end.

        Raises:
            ValueError: If the tokenizer merges a text with the end of the item before it.
        """
        before = encode_texts([END], self.llm)[0].tolist()
        behind = [f"{END} {' '.join(text.translate(ESCAPE).split())}" for text in texts]
        found = [ids.tolist() for ids in encode_texts(behind, self.llm)]
        merged = [text for text, ids in zip(texts, found, strict=True) if ids[: len(before)] != before]
        if merged:
            raise ValueError(
                f"This tokenizer merges {len(merged)} of {len(texts)} texts with the '{END}' before them, first "
                f"'{merged[0]}', so that they are other tokens in a history than alone. Use an LLM with another "
                "tokenizer, or change these texts."
            )
        return [tuple(token for token in ids[len(before) :] if token != self.end) for ids in found]

    def numbered(
        self, sequences: Sequences, taken: frozenset[tuple[int, ...]], room: int, form: str = "{}"
    ) -> Sequences:
        """Tell the second and further of equal sequences apart by numbers, which make no other item's sequence.

        Args:
            sequences: Tokens of items without the end.
            taken: Those that other items have.
            room: Largest number of tokens of a sequence.
            form: How a number is written.

        Returns:
            Distinct sequences, none of which is taken.

        Raises:
            ValueError: If there is no room for a number, or the tokenizer does not know enough of them.
        """
        used, seen, found = taken.union(sequences), set(taken), []
        last: dict[tuple[int, ...], int] = {}
        for ids in sequences:
            own, number = ids, last.get(ids, 1)
            while own in seen or (own != ids and own in used):
                number += 1
                suffix = self._number(form.format(number))
                if len(suffix) > room:
                    raise ValueError(
                        f"{number} items are written alike, and in {room} tokens there is no room for a number to tell "
                        "them apart; run `llmrec tokenize` without append, with a larger max_tokens, and train again."
                    )
                if number > TRIED + len(used):
                    raise ValueError(
                        f"More items are written '{self.llm.decode(list(ids))}' than this tokenizer knows numbers to "
                        "tell them apart by; use an LLM whose tokenizer reads every number, or change their texts."
                    )
                own = with_suffix(ids, suffix, room)
            last[ids] = number
            seen.add(own)
            found.append(own)
        return found

    def _number(self, text: str) -> tuple[int, ...]:
        """Tokens of a number that the tokenizer knows."""
        return tuple(token for token in self.tokens([text])[0] if token != self.llm.unk_token_id)


def with_suffix(ids: tuple[int, ...], suffix: tuple[int, ...], room: int) -> tuple[int, ...]:
    """Put a suffix behind as much of a text as leaves room for it; a longer suffix is cut, too."""
    return (*ids[: max(0, room - len(suffix))], *suffix)[:room]
