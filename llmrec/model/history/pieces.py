"""Histories in pieces, which run across items; an answer is its item alone, in the pieces of its own features.

With a generator a history is segmented at random; without one, in its one fixed way. A piece of two items would tell
what follows the first one, so a history has at most one target, which the pieces of the others do not touch.

Source: ActionPiece (arXiv:2502.13581), section 3.3: set permutation regularisation draws a segmentation for every
example in training; the answer is written without permutation.

Shapes: B histories, n items of all of them, N items of the catalogue, L tokens of the longest answer, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np

from llmrec.model.history.encoder import EncodedPrompts, HistoryEncoder
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary


class PieceHistoryEncoder(HistoryEncoder):
    """Histories in pieces that run across items, and answers in the pieces of one.

    Args:
        table: Answers of the catalogue, with the pieces that they are made of.
        vocabulary: Token ids of the pieces.

    Raises:
        ValueError: If the table has no pieces, or other ones than the vocabulary has tokens for.
    """

    def __init__(self, table: SidTable, vocabulary: SidVocabulary):
        vocabulary.check_table(table)
        if table.pieces is None:
            raise ValueError("The vocabulary is of pieces, the SID table has none. Run `llmrec extend` on the table.")
        self.pieces, self.is_drawn = table.pieces, vocabulary.segmentations != 0
        self.start, self.token_range = vocabulary.starts[0], vocabulary.token_range
        answers_NL = table.codes(np.arange(table.num_items))
        self.features_Nm = self.pieces.items(answers_NL)
        self.tokens_NL = self.sid_tokens_NL = vocabulary.token_ids(answers_NL)
        self.items = None

    def encode(
        self,
        rows: np.ndarray,
        num_items: np.ndarray,
        is_target: np.ndarray,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> EncodedPrompts:
        """Encode histories; see `HistoryEncoder.encode`.

        A token belongs to the item of its last feature, so that some items have none.

        Raises:
            ValueError: If a history has more than one target.
        """
        tokens, items, is_answer, lengths = [], [], [], []
        ends, first = np.cumsum(num_items), 0
        for end, rng in zip(ends.tolist(), repeat(None) if rngs is None else rngs, strict=rngs is not None):
            num_targets = int(is_target[first:end].sum())
            if num_targets > 1:
                raise ValueError(
                    f"A history has {num_targets} targets, but pieces run across items and would tell the later ones. "
                    "Set targets to last_item."
                )
            history = np.array(self._segment(rows[first : end - num_targets], rng), dtype=np.int64)
            answer = self.encode_answer(rows[end - num_targets : end])
            tokens += [history + self.start, answer]
            last_features = np.cumsum(self.pieces.sizes[history]) - 1
            items += [first + last_features // self.pieces.num_kinds, np.full(len(answer), end - 1)]
            is_answer += [np.zeros(len(history), bool), np.ones(len(answer), bool)]
            lengths.append(len(history) + len(answer))
            first = end
        empty = np.empty(0, np.int64)
        return EncodedPrompts(
            np.concatenate([empty, *tokens]),
            np.concatenate([empty, *items]),
            np.concatenate([empty.astype(bool), *is_answer]),
            np.array(lengths, np.int64),
        )

    def _segment(self, rows: np.ndarray, rng: np.random.Generator | None) -> list[int]:
        features = self.features_Nm[rows]
        if rng is None or not self.is_drawn:
            return self.pieces.segment_fixed(features)
        return self.pieces.segment(features, rng)

    def encode_answer(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode items as an answer, one after another; see `HistoryEncoder.encode_answer`. Nothing is drawn."""
        tokens_nL = self.tokens_NL[np.asarray(rows, dtype=np.int64)]
        return tokens_nL[tokens_nL != EMPTY]
