"""The one prompt of llmrec: an instruction, then the history, then the answer.

Nothing stands between history and answer (no chat header, separator or marker), so the answer continues the history
and every item of a history is trained in the place where it will be asked for. A chat template may wrap the
instruction only.

An item of a prompt is its SID, followed by its own token if items have one. An answer is the SID alone, so item tokens
are read and never written. For a model that answers by a head, prompt and answer have one id for each item
(`llmrec.sid.answer_head`).

Every prompt is put together here: `Prompt` makes the tokens before a history, `HistoryEncoder.encode_prompts` adds the
history. Training, evaluation and serving call these two, so a change of the prompt is a change of this file.

Shapes: B prompts, n items of all their histories, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.configs.sft import DEFAULT_INSTRUCTION
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary

NO_ITEM = -1


@dataclass(frozen=True)
class Prompt:
    """The part of a prompt that precedes the history.

    Args:
        instruction: Text of the instruction.
        chat_template: Render it as a user turn of the tokenizer's chat template; the history opens the answer turn.
    """

    instruction: str = DEFAULT_INSTRUCTION
    chat_template: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not isinstance(self.chat_template, bool):
            raise TypeError(f"prompt: {self} needs a text and true or false")

    def prefix(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """List the token ids before the history; they are the same for every user.

        Raises:
            ValueError: If a chat template is asked for and absent, or the prefix is empty.
        """
        ids = self._opening(self._rendered(tokenizer), tokenizer)
        if not ids:
            raise ValueError("The instruction gives no tokens; the first item of a history needs something before it.")
        return ids

    def around(self, slot: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """List the token ids before and after a slot in the instruction, for a question about the text in the slot.

        Args:
            slot: Text that occurs once in the instruction.
            tokenizer: Tokenizer of the extended model.
        """
        before, after = self._rendered(tokenizer).split(slot)
        opening = self._opening(before.rstrip(" "), tokenizer)
        return opening, tokenizer.encode(after, add_special_tokens=False)

    def _rendered(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Put the instruction into the chat template, if it is asked for."""
        if not self.chat_template:
            return self.instruction
        if not tokenizer.chat_template:
            raise ValueError("chat_template is true but the tokenizer has none; set it to false.")
        turns = [{"role": "user", "content": self.instruction}]
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _opening(self, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Encode the first text of a prompt; a chat template has written its special tokens already."""
        ids = tokenizer.encode(text, add_special_tokens=not self.chat_template)
        ends = not self.chat_template and ids and ids[-1] == tokenizer.eos_token_id
        return ids[:-1] if ends else ids

    def to_dict(self) -> dict[str, str | bool]:
        """Convert the prompt to the arguments that make it, for llmrec.json."""
        return dataclasses.asdict(self)


class EncodedPrompts(NamedTuple):
    """Prompts as token ids, one after another.

    Attributes:
        tokens: (T,) int64 token ids.
        items: (T,) int64 position, among the items that were encoded, of the item that a token belongs to; -1 for
            tokens of the prefix.
        lengths: (B,) int64 number of tokens of each prompt.
    """

    tokens: np.ndarray
    items: np.ndarray
    lengths: np.ndarray


class HistoryEncoder:
    """Token ids of items, histories and prompts. Collators and decoders know histories only through this.

    Args:
        table: Semantic IDs of the catalogue.
        vocabulary: Token ids of their codes, and of the items if they have tokens of their own.

    Attributes:
        sid_tokens_NL: (N, L) int64 token ids of each item's SID; -1 beyond its length.
        tokens_NL: (N, L) int64 token ids of each item's answer, which is the SID; with a head (N, 1) ids of the items.
        token_range: Token ids of answers.
        items: Tokens of the items; None if they have none.

    Raises:
        ValueError: If the table needs codes that the vocabulary lacks, or a head cannot read it.
    """

    def __init__(self, table: SidTable, vocabulary: SidVocabulary):
        vocabulary.check_table(table)
        self.sid_tokens_NL = vocabulary.token_ids(table.codes(np.arange(table.num_items)))
        self.tokens_NL, self.token_range = self.sid_tokens_NL, vocabulary.token_range
        if vocabulary.head is not None:
            check_readable(table)
            self.token_range = range(vocabulary.added_range.stop, vocabulary.added_range.stop + table.num_items)
            self.tokens_NL = np.array(self.token_range)[:, np.newaxis]
        self.is_fixed_length = bool((self.tokens_NL != EMPTY).all())
        self.items, self._in_prompt = vocabulary.items, self.tokens_NL
        if vocabulary.items is not None:
            own = vocabulary.items.start + np.arange(table.num_items)
            self._in_prompt = np.concatenate([self.tokens_NL, own[:, None]], axis=1)  # also behind a shorter SID

    def encode_history(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode a history, items one after another, as it stands in a prompt.

        Args:
            rows: (n,) item rows, oldest first.
            rng: Source of randomness for encoders whose tokens vary between draws; those of a SidTable do not.

        Returns:
            (tokens,) int64.
        """
        return self.encode_histories(rows, rng)[0]

    def encode_answer(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode items as an answer, their SIDs one after another.

        Args:
            rows: (n,) item rows.
            rng: See `encode_history`.

        Returns:
            (tokens,) int64.
        """
        tokens_nL = self.tokens_NL[np.asarray(rows, dtype=np.int64)]
        return tokens_nL[tokens_nL != EMPTY]

    def encode_histories(
        self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode histories that lie one behind another, in one gather.

        Args:
            rows: (n,) item rows of all histories.
            rng: See `encode_history`.

        Returns:
            (tokens,) int64 token ids, and (n,) int64 number of tokens of each item.
        """
        tokens = self._in_prompt[np.asarray(rows, dtype=np.int64)]
        if self.is_fixed_length:
            return tokens.reshape(-1), np.full(len(tokens), tokens.shape[1])
        is_token = tokens != EMPTY
        return tokens[is_token], is_token.sum(axis=1)

    def encode_prompts(
        self, prefix: Sequence[int], rows: Sequence[int] | np.ndarray, num_items: Sequence[int] | np.ndarray
    ) -> EncodedPrompts:
        """Encode prompts of histories that lie one behind another.

        Args:
            prefix: Token ids before every history, as `Prompt.prefix` gives them.
            rows: (n,) item rows of all histories.
            num_items: (B,) number of items of each history.
        """
        tokens, sizes = self.encode_histories(rows)
        items = np.arange(len(sizes)).repeat(sizes)
        ends = np.append(0, np.cumsum(sizes))[np.append(0, np.cumsum(num_items))]
        starts = np.repeat(ends[:-1], len(prefix))
        before = np.tile(np.asarray(prefix, dtype=np.int64), len(num_items))
        return EncodedPrompts(
            np.insert(tokens, starts, before), np.insert(items, starts, NO_ITEM), np.diff(ends) + len(prefix)
        )

    def pad_prompts(
        self, prefix: Sequence[int], histories: Sequence[Sequence[int] | np.ndarray], pad_token_id: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode prompts as a rectangle, padded on the right.

        Args:
            prefix: Token ids before every history.
            histories: B lists of item rows, oldest first.
            pad_token_id: Token of padding.

        Returns:
            (B, T) int64 token ids, and their (B, T) int64 attention mask.
        """
        rows = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
        prompts = self.encode_prompts(prefix, rows, [len(history) for history in histories])
        is_token = np.arange(prompts.lengths.max()) < prompts.lengths[:, None]
        ids = np.full(is_token.shape, pad_token_id)
        ids[is_token] = prompts.tokens
        return ids, is_token.astype(np.int64)


def check_readable(table: SidTable) -> None:
    """Refuse semantic IDs that a head cannot read, which makes one vector of one SID with a code at each level.

    Raises:
        ValueError: If an item has several SIDs, or SIDs differ in length.
    """
    several = "items with several semantic IDs" if table.sids_per_item is not None else ""
    wrong = several or ("semantic IDs of different lengths" if len(np.unique(table.lengths)) > 1 else "")
    if wrong:
        raise ValueError(
            f"The SID table has {wrong}; a head reads one semantic ID of each item, with a code at every level. Run "
            "`llmrec tokenize` with tokenizer opq, or leave `head` out."
        )


def most_prompt_tokens(prefix: Sequence[int], num_items: int, tokens_per_item: int) -> int:
    """Bound the number of tokens of a prompt of `num_items` items."""
    return len(prefix) + num_items * tokens_per_item
