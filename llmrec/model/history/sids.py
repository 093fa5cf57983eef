"""Histories of semantic IDs: an item is its SID, followed by its own token if items have one.

An answer is the SID alone, so item tokens are read and never written. For a model that answers by a head which knows
items by their codes, prompt and answer have one id for each item (`llmrec.sid.answer_head`).

Shapes: B histories, n items of all of them, N items of the catalogue, L tokens of the longest SID.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llmrec.model.history.encoder import EncodedPrompts, HistoryEncoder
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary


class SidHistoryEncoder(HistoryEncoder):
    """Histories and answers in the first semantic ID of each item; nothing is drawn.

    Args:
        table: Semantic IDs of the catalogue.
        vocabulary: Token ids of their codes, and of the items if they have tokens of their own.

    Attributes:
        tokens_NL: (N, L) int64 token ids of each item's answer, which is the SID; with such a head (N, 1) ids of items.
        in_prompt: (rows, tokens) int64 token ids of each item as it stands in a history; -1 beyond its length.
        in_answer: (rows, L) int64 token ids of each item as an answer.
        is_fixed_length: All answers have L tokens.

    Raises:
        ValueError: If the table needs codes that the vocabulary lacks, or a head cannot read it.
    """

    def __init__(self, table: SidTable, vocabulary: SidVocabulary):
        vocabulary.check_table(table)
        self.sid_tokens_NL = vocabulary.token_ids(table.codes(np.arange(table.num_items)))
        self.tokens_NL, self.token_range = self.sid_tokens_NL, vocabulary.token_range
        if vocabulary.head is not None and vocabulary.head.by_codes:
            check_readable(table)
            self.token_range = range(vocabulary.added_range.stop, vocabulary.added_range.stop + table.num_items)
            self.tokens_NL = np.array(self.token_range)[:, np.newaxis]
        self.is_fixed_length = bool((self.tokens_NL != EMPTY).all())
        self.items, self.in_prompt, self.in_answer = vocabulary.items, self.tokens_NL, self.tokens_NL
        if vocabulary.items is not None:
            own = vocabulary.items.start + np.arange(table.num_items)
            self.in_prompt = np.concatenate([self.tokens_NL, own[:, None]], axis=1)  # also behind a shorter SID

    def encode(
        self,
        rows: np.ndarray,
        num_items: np.ndarray,
        is_target: np.ndarray,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> EncodedPrompts:
        """Encode histories in one gather; see `HistoryEncoder.encode`."""
        tokens = self.in_prompt[rows]
        if self.is_fixed_length:
            tokens, sizes = tokens.reshape(-1), np.full(len(tokens), tokens.shape[1])
        else:
            is_token = tokens != EMPTY
            tokens, sizes = tokens[is_token], is_token.sum(axis=1)
        ends = np.append(0, np.cumsum(sizes))[np.append(0, np.cumsum(num_items))]
        is_answer = np.ones(len(tokens), bool) if self.items is None else tokens < self.items.start
        return EncodedPrompts(tokens, np.arange(len(sizes)).repeat(sizes), is_answer, np.diff(ends))

    def encode_answer(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode items as an answer, their SIDs one after another; see `HistoryEncoder.encode_answer`."""
        tokens_nL = self.in_answer[np.asarray(rows, dtype=np.int64)]
        return tokens_nL[tokens_nL != EMPTY]


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
