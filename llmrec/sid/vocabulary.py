"""SidVocabulary: the tokens of semantic IDs in an LLM's vocabulary.

Every (level, code) is one token. The tokens of a level are one contiguous block, so that a level's logits are a slice
of the output matrix. Blocks may hold spare tokens for codes of items that are appended later. Identifiers written in
words need no new tokens: there a code is the token that `llmrec.sid.tokens.level_words` says, and the blocks are empty.

Tokens are added as ordinary ones (special=False, normalized=False): `decode(skip_special_tokens=True)`, which TRL and
most serving code call, deletes special tokens.

Source: token scheme `<a_12><b_3>` of LC-Rec (arXiv:2311.09049) and MiniOneRec (arXiv:2510.24431).
"""

from __future__ import annotations

import dataclasses
import operator
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import AddedToken, PreTrainedTokenizerBase

from llmrec.runtime.manifest import JsonObject
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.bounds import check_layout
from llmrec.sid.item_layout import ItemLayout
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.pieces.pieces import check_segmentations
from llmrec.sid.table import EMPTY
from llmrec.sid.tokens.device_tokens import DeviceTokens, HasLevels
from llmrec.sid.tokens.level_words import LevelWords
from llmrec.sid.tokens.template import (
    DEFAULT_TEMPLATE,
    check_new,
    check_template,
    check_tokens,
    default_template,
    end_of_sequence,
)


@dataclass(frozen=True)
class SidVocabulary(DeviceTokens):
    """Token ids of all codes.

    Args:
        level_sizes: Number of codes per level that a SidTable may use.
        starts: Token id of code 0 of each level.
        block_sizes: Number of tokens per level, spare ones included.
        eos_token_id: Token that ends an answer in `generate()`.
        template: Text of a token; `{letter}` (a, b, …) or `{level}` (0, 1, …), and `{code}`.
        items: Tokens of the items, right behind the blocks; None if items have none.
        head: Head that answers; None if answers are semantic IDs.
        words: Tokens of the codes where they are words of the LLM, which have no blocks; None otherwise.
        segmentations: Where codes are pieces, the number of ways in which a history is written, whose rankings are
            merged; 0 for its one fixed way. All levels then have the same block. None where codes are no pieces.
        layout: Tokens around items, and the numbers in names; None for llmrec's own prompt.

    Examples:
        `add_to` makes one from a tokenizer. Written out, two levels of four codes each behind a hundred other tokens:

        >>> from llmrec import SidVocabulary
        >>> vocabulary = SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2)
        >>> vocabulary.num_levels, vocabulary.num_tokens, vocabulary.token_range
        (2, 8, range(100, 108))
    """

    level_sizes: tuple[int, ...]
    starts: tuple[int, ...]
    block_sizes: tuple[int, ...]
    eos_token_id: int
    template: str = DEFAULT_TEMPLATE
    items: ItemTokens | None = None
    head: AnswerHead | None = None
    words: LevelWords | None = None
    segmentations: int | None = None
    layout: ItemLayout | None = None

    def __post_init__(self) -> None:
        if self.words is None:
            layout = (self.level_sizes, self.starts, self.block_sizes, self.eos_token_id, self.added_range.stop)
            check_layout(*layout, self.has_one_block)
            check_template(self.template, self.num_levels, self.has_one_block)
        check_segmentations(self.segmentations, self.words or self.items or self.head)

    @classmethod
    def of_words(cls, words: LevelWords, eos_token_id: int) -> SidVocabulary:
        """Make the vocabulary of identifiers in words of the LLM, as a SidTable or a TokenTrie has them.

        Examples:
            >>> from llmrec import SidTable, SidVocabulary
            >>> table = SidTable.of_tokens(["ring", "ring 2"], [[7, 1], [7, 5, 1]])
            >>> vocabulary = SidVocabulary.of_words(table.words, eos_token_id=2)
            >>> vocabulary.token_ids(table.codes([1, 0])).tolist(), vocabulary.num_tokens
            ([[7, 5, 1], [7, 1, -1]], 0)
        """
        return cls(words.level_sizes, (), (), eos_token_id, words=words)

    @classmethod
    def add_to(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        level_sizes: Sequence[int],
        spare_codes: int = 0,
        template: str | None = None,
        num_items: int = 0,
        segmentations: int | None = None,
    ) -> SidVocabulary:
        """Add one token per (level, code) to a tokenizer, in contiguous blocks, and one per item behind them.

        Args:
            tokenizer: Tokenizer of a causal LM, changed in place.
            level_sizes: Number of codes of each level.
            spare_codes: Tokens per level that are added for codes of later items.
            template: Text of a token; `<a_12>`, or `<0_12>` for more than 26 levels, when left out.
            num_items: Number of items to add a token for.
            segmentations: See the class; with it, one token per code is added, which all levels share.

        Returns:
            The vocabulary of the new tokens.

        Raises:
            ValueError: If the template does not keep levels, codes or neighbouring tokens apart, its tokens may occur
                in ordinary text, a token is already in the vocabulary, or the tokenizer has no end-of-sequence token.

        Examples:
            >>> from llmrec import SidVocabulary
            >>> from llmrec.model.micro import word_tokenizer
            >>> tokenizer = word_tokenizer(["red apple", "green tea"], max_words=64)
            >>> vocabulary = SidVocabulary.add_to(tokenizer, level_sizes=[4, 4])
            >>> tokenizer.tokenize("red <a_1><b_3>")
            ['red', '<a_1>', '<b_3>']
            >>> vocabulary.token_range.stop == len(tokenizer)
            True
        """
        if template is None:
            template = default_template(len(level_sizes), segmentations is not None)
        eos_token_id = end_of_sequence(tokenizer)
        block_sizes = tuple(int(size) + int(spare_codes) for size in level_sizes)
        before = np.cumsum((0, *block_sizes[:-1])) if segmentations is None else [0] * len(block_sizes)
        starts = tuple(len(tokenizer) + int(number) for number in before)
        items = ItemTokens(len(tokenizer) + sum(block_sizes) + 1, num_items) if num_items else None
        vocabulary = cls(
            tuple(map(int, level_sizes)), starts, block_sizes, eos_token_id, template, items,
            segmentations=segmentations)  # fmt: skip
        tokens = vocabulary.all_tokens()
        check_new(tokens, template, tokenizer)
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        vocabulary.check(tokenizer)
        return vocabulary

    @property
    def num_levels(self) -> int:
        """Number of levels, L."""
        return len(self.level_sizes)

    @property
    def num_rows(self) -> int:
        """Number of rows that the embedding of a model needs to have all these tokens."""
        own = self.added_range.stop if self.words is None else self.words.num_rows
        return own if self.layout is None else max(own, self.layout.num_rows)

    @property
    def tokens_per_item(self) -> int:
        """Largest number of tokens of an item in a prompt."""
        reads_vectors = self.head is not None and self.head.by_codes
        around = 0 if self.layout is None else self.layout.tokens_per_item
        return 1 if reads_vectors else self.num_levels + (self.items is not None) + around

    def token(self, level: int, code: int) -> str:
        """Write the token of a code.

        Args:
            level: Level, 0-based.
            code: Code of the level.

        Examples:
            >>> from llmrec import SidVocabulary
            >>> SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2).token(1, 3)
            '<b_3>'
        """
        number = code if self.layout is None or self.layout.numbers is None else self.layout.numbers[level][code]
        return self.template.format(letter=string.ascii_lowercase[level % 26], level=level, code=number)

    def tokens(self) -> list[str]:
        """List the text of every SID token, in the order of their ids."""
        blocks = enumerate(self.block_sizes[: self.num_blocks])
        return [self.token(level, code) for level, size in blocks for code in range(size)]

    def all_tokens(self) -> list[str]:
        """List the text of every SID token and item token, in the order of their ids."""
        return self.tokens() + (self.items.tokens() if self.items else [])

    def text(self, codes: np.ndarray) -> str:
        """Write semantic IDs as they stand in a prompt, one after another.

        Args:
            codes: (n, L) codes, -1 beyond a SID's length.

        Examples:
            >>> import numpy as np
            >>> from llmrec import SidVocabulary
            >>> vocabulary = SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2)
            >>> vocabulary.text(np.array([[0, 3], [2, -1]]))
            '<a_0><b_3><a_2>'
        """
        if self.words is not None:
            return self.words.text(codes)
        return "".join(self.token(level, code) for sid in codes for level, code in enumerate(sid) if code != EMPTY)

    def token_ids(self, codes: np.ndarray) -> np.ndarray:
        """Convert codes to token ids.

        Args:
            codes: (…, L) codes; -1 (beyond a SID's length) stays -1.

        Returns:
            (…, L) int64 token ids.

        Examples:
            >>> import numpy as np
            >>> from llmrec import SidVocabulary
            >>> vocabulary = SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2)
            >>> vocabulary.token_ids(np.array([[0, 3], [2, -1]])).tolist()
            [[100, 107], [102, -1]]
        """
        if self.words is not None:
            return self.words.token_ids(codes)
        codes = np.asarray(codes)
        return np.where(codes == EMPTY, EMPTY, codes + np.asarray(self.starts)[: codes.shape[-1]])

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer in which a code or an item is not exactly its one token.

        Args:
            tokenizer: Tokenizer of the checkpoint.

        Raises:
            ValueError: If a token is absent, has another id or name, or is not read as itself among others.
        """
        if self.words is not None:
            self.words.check(tokenizer)
        else:
            check_tokens(self.all_tokens, self.added_range, self.template, tokenizer)

    def check_table(self, table: HasLevels) -> None:
        """Refuse a table, or a trie of one, that needs tokens this vocabulary does not have.

        Args:
            table: SidTable or SidTrie.

        Raises:
            ValueError: If it has other levels, more codes, other words, or another number of items than have tokens.
        """
        self.check_words(table)
        if table.num_levels != self.num_levels or any(
            need > have for need, have in zip(table.level_sizes, self.level_sizes, strict=True)
        ):
            raise ValueError(
                f"The SID table has level sizes {table.level_sizes}, the vocabulary {list(self.level_sizes)}. "
                "Run `llmrec extend` on the new table."
            )
        if self.items is not None and table.num_items != self.items.num_items:
            have = f"{self.items.num_items} items have a token of their own"
            raise ValueError(f"The SID table has {table.num_items} items, and {have}. Run `llmrec extend` on it.")

    def to_dict(self) -> JsonObject:
        """Convert the vocabulary to its arguments, for llmrec.json; words stand in the SID table."""
        if self.words is not None:
            return {"eos_token_id": self.eos_token_id, "words": True}
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: JsonObject, words: LevelWords | None = None) -> SidVocabulary:
        """Make a vocabulary of the output of `to_dict`.

        Args:
            values: Arguments of the vocabulary, as JSON has them.
            words: Words of the SID table, if it has any.

        Raises:
            ValueError: If the lists are not of one length, a number is out of bounds, or words are absent.
            TypeError, KeyError: If a value is of another type, or absent.

        Examples:
            >>> from llmrec import SidVocabulary
            >>> vocabulary = SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2)
            >>> SidVocabulary.from_dict(vocabulary.to_dict()) == vocabulary
            True
        """
        if "words" in values:
            if words is None:
                raise ValueError("identifiers are words, but the SID table has none")
            return cls.of_words(words, operator.index(values["eos_token_id"]))
        lists = {key: tuple(map(operator.index, values[key])) for key in ("level_sizes", "starts", "block_sizes")}
        items = ItemTokens(**values["items"]) if "items" in values else None
        head = AnswerHead(**values["head"]) if "head" in values else None
        layout = ItemLayout.from_dict(values["layout"]) if "layout" in values else None
        return cls(**{**values, **lists, "items": items, "head": head, "layout": layout})
