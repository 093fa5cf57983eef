"""The one prompt of llmrec: instruction, history, answer.

Nothing stands between history and answer (no chat header, separator or marker), so the answer continues the history
and every item of a history is trained in the place where it will be asked for. A chat template may wrap the
instruction only. Training, evaluation and serving build their token ids here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary

DEFAULT_INSTRUCTION = "Recommend the next item for a user with this history, oldest first:"


@dataclass(frozen=True)
class Prompt:
    """What precedes the history.

    Args:
        instruction: Text of the instruction.
        chat_template: Render it as a user turn of the tokenizer's chat template; the history opens the answer turn.
    """

    instruction: str = DEFAULT_INSTRUCTION
    chat_template: bool = False

    def __post_init__(self):
        if not isinstance(self.instruction, str) or not isinstance(self.chat_template, bool):
            raise TypeError(f"prompt: {self} needs a text and true or false")

    def prefix(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids before the history; the same for every user.

        Raises:
            ValueError: If a chat template is asked for and absent, or the prefix is empty.
        """
        if self.chat_template:
            if not tokenizer.chat_template:
                raise ValueError("chat_template is true but the tokenizer has none; set it to false.")
            turns = [{"role": "user", "content": self.instruction}]
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            ids = tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = tokenizer.encode(self.instruction)
            if ids and ids[-1] == tokenizer.eos_token_id:
                ids = ids[:-1]
        if not ids:
            raise ValueError("The instruction gives no tokens; the first item of a history needs something before it.")
        return ids

    def to_dict(self) -> dict[str, str | bool]:
        return dataclasses.asdict(self)


class HistoryEncoder:
    """Item rows -> token ids, by the SidTable. Collators and decoders know histories only through this.

    Args:
        table: Semantic IDs of the catalogue.
        vocabulary: Token ids of their codes.
    """

    def __init__(self, table: SidTable, vocabulary: SidVocabulary):
        vocabulary.check_table(table)
        self.tokens_NL = vocabulary.token_ids(table.codes(np.arange(table.num_items)))
        self.token_range = vocabulary.token_range
        self.is_fixed_length = bool((self.tokens_NL != EMPTY).all())

    def encode_history(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Token ids of a history, items one after another.

        Args:
            rows: (n,) item rows, oldest first.
            rng: Source of randomness for encoders whose tokens vary between draws; a SidTable's do not.

        Returns:
            (tokens,) int64.
        """
        return self.encode_histories(rows, rng)[0]

    def encode_histories(
        self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of histories that lie one behind another, in one gather.

        Args:
            rows: (n,) item rows of all histories.
            rng: See `encode_history`.

        Returns:
            (tokens,) int64 token ids, and (n,) int64, how many of them each item has.
        """
        tokens_nL = self.tokens_NL[np.asarray(rows, dtype=np.int64)]
        if self.is_fixed_length:
            return tokens_nL.reshape(-1), np.full(len(tokens_nL), tokens_nL.shape[1])
        is_token = tokens_nL != EMPTY
        return tokens_nL[is_token], is_token.sum(axis=1)
