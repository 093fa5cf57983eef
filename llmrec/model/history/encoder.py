"""HistoryEncoder: a way of writing histories and answers as tokens. Collators and decoders know histories only by it.

An encoder writes many histories at once, because a batch has many. It may draw how it writes one (an alias, a
segmentation), from a random generator of that history alone; without generators it writes each in its one fixed way,
as evaluation and serving need. So what a model reads in training depends neither on the order of a batch nor on the
number of processes.

Items that are asked for may be written otherwise than items that are read: an encoder is told which are targets. Where
the tokens of an item depend on the items behind it, a history with several targets would give their answers away; the
stage that trains then has to cut one example for each target (`targets: last_item`).

An encoder is a file here, and `choice.py` chooses it.

Shapes: B histories, n items of all of them, N items of the catalogue, A aliases, L tokens of the longest answer, T
tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llmrec.sid.item_tokens import ItemTokens

NO_ITEM = -1


class EncodedPrompts(NamedTuple):
    """Prompts, or histories without what precedes them, as token ids one after another.

    Attributes:
        tokens: (T,) int64 token ids.
        items: (T,) int64 position, among the items that were encoded, of the item that a token belongs to; -1 for
            tokens of the prefix.
        is_answer: (T,) bool, tokens that an answer to their item has. The others are read and never written.
        lengths: (B,) int64 number of tokens of each prompt.
    """

    tokens: np.ndarray
    items: np.ndarray
    is_answer: np.ndarray
    lengths: np.ndarray


class HistoryEncoder(ABC):
    """Tokens of histories and of answers.

    Attributes:
        tokens_NL: (N, L) int64 token ids of each item's answer in its fixed way; -1 beyond its length.
        sid_tokens_NL: (N, L) int64 token ids of each item's SID; -1 beyond its length.
        token_range: Range of token ids that answers are made of.
        items: Tokens of the items; None if they have none.
    """

    tokens_NL: np.ndarray
    sid_tokens_NL: np.ndarray
    token_range: range
    items: ItemTokens | None

    @abstractmethod
    def encode(
        self,
        rows: np.ndarray,
        num_items: np.ndarray,
        is_target: np.ndarray,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> EncodedPrompts:
        """Encode histories that lie one behind another.

        Args:
            rows: (n,) int64 item rows of all histories, oldest first.
            num_items: (B,) int64 number of items of each history.
            is_target: (n,) bool, items whose answers are learned; the last ones of a history, if any.
            rngs: Generator of each history, for encoders that draw; they write their fixed way when left out.
        """

    @abstractmethod
    def encode_answer(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode items as an answer, one after another.

        Args:
            rows: (n,) item rows.
            rng: Generator for encoders that draw.

        Returns:
            (tokens,) int64.
        """

    @property
    def tokens_ANL(self) -> np.ndarray:
        """(A, N, L) `tokens_NL` of each alias; one alias without aliases."""
        return self.tokens_NL[np.newaxis]

    def draw_aliases(self, num_histories: int, rngs: Iterable[np.random.Generator]) -> np.ndarray:
        """(B,) int64 alias that `encode` writes each of B histories in, given generators in the same state.

        Generators are not made where nothing is drawn: one takes 20 microseconds.
        """
        return np.zeros(num_histories, np.int64)

    def encode_history(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode a history, items one after another, as it stands in a prompt.

        Args:
            rows: (n,) item rows, oldest first.
            rng: Generator for encoders that draw.

        Returns:
            (tokens,) int64.
        """
        return self.encode_prompts((), rows, [len(rows)], rngs=None if rng is None else [rng]).tokens

    def encode_prompts(
        self,
        prefix: Sequence[int],
        rows: Sequence[int] | np.ndarray,
        num_items: Sequence[int] | np.ndarray,
        is_target: np.ndarray | None = None,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> EncodedPrompts:
        """Encode prompts of histories that lie one behind another.

        Args:
            prefix: Token ids before every history, as `Prompt.prefix` gives them.
            rows: (n,) item rows of all histories.
            num_items: (B,) number of items of each history.
            is_target: (n,) bool, items whose answers are learned; none when left out.
            rngs: Generator of each history; see `encode`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        is_target = np.zeros(len(rows), bool) if is_target is None else is_target
        tokens, items, is_answer, lengths = self.encode(rows, np.asarray(num_items, dtype=np.int64), is_target, rngs)
        starts = np.repeat(np.cumsum(lengths) - lengths, len(prefix))
        before = np.tile(np.asarray(prefix, dtype=np.int64), len(lengths))
        return EncodedPrompts(
            np.insert(tokens, starts, before),
            np.insert(items, starts, NO_ITEM),
            np.insert(is_answer, starts, False),
            lengths + len(prefix),
        )

    def pad_prompts(
        self,
        prefix: Sequence[int],
        histories: Sequence[Sequence[int] | np.ndarray],
        pad_token_id: int,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode prompts as a rectangle, padded on the right.

        Args:
            prefix: Token ids before every history.
            histories: B lists of item rows, oldest first.
            pad_token_id: Token of padding.
            rngs: Generator of each history; see `encode`.

        Returns:
            (B, T) int64 token ids, and their (B, T) int64 attention mask.
        """
        rows = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
        prompts = self.encode_prompts(prefix, rows, [len(history) for history in histories], rngs=rngs)
        is_token = np.arange(prompts.lengths.max()) < prompts.lengths[:, None]
        ids = np.full(is_token.shape, pad_token_id)
        ids[is_token] = prompts.tokens
        return ids, is_token.astype(np.int64)
