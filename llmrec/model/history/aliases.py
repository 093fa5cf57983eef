"""Histories in one alias: training draws it for each sequence, in which history and answers are then written.

A model that reads a catalogue in several ways sees more sequences, and learns what they have in common. Where nothing
is drawn, a history is written in the first alias; `llmrec.decoding.aliases.search` reads it in each.

Sources: MTGRec (arXiv:2504.04400), whose aliases are the semantic IDs of adjacent checkpoints of one tokenizer, and
RecForest (NeurIPS 2022), whose aliases are the leaves of several trees. Departures: MTGRec draws one for each batch,
and chooses among them by their influence on the validation loss in later stages; here all are equally likely. RecForest
sums the losses of all trees.

Shapes: B histories, n items of all of them, L tokens of the longest answer, A aliases, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llmrec.model.history.encoder import EncodedPrompts
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.aliases import aliases_of
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary


class AliasHistoryEncoder(SidHistoryEncoder):
    """Histories and answers in an alias that is drawn.

    Args:
        table: Semantic IDs of the catalogue, with equally many for each item.
        vocabulary: Token ids of their codes, and of the items if they have tokens of their own.

    Attributes:
        tables: Semantic IDs of each alias.

    Raises:
        ValueError: If the table needs codes that the vocabulary lacks.
    """

    def __init__(self, table: SidTable, vocabulary: SidVocabulary):
        self.tables, self.num_items = aliases_of(table), table.num_items
        super().__init__(self.tables[0], vocabulary)
        each = [SidHistoryEncoder(alias, vocabulary) for alias in self.tables]
        # Item n in alias a has row a N + n.
        self.in_prompt = np.concatenate([encoder.in_prompt for encoder in each])
        self.in_answer = np.concatenate([encoder.in_answer for encoder in each])
        self.is_fixed_length = all(encoder.is_fixed_length for encoder in each)

    def encode(
        self,
        rows: np.ndarray,
        num_items: np.ndarray,
        is_target: np.ndarray,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> EncodedPrompts:
        """Encode each history in the alias that its generator draws first; see `HistoryEncoder.encode`."""
        if rngs is not None:
            rows = rows + np.repeat(self.num_items * self.draw_aliases(len(num_items), rngs), num_items)
        return super().encode(rows, num_items, is_target)

    def encode_answer(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Encode items as an answer in one alias; see `HistoryEncoder.encode_answer`."""
        alias = 0 if rng is None else self.draw_aliases(1, [rng])[0]
        return super().encode_answer(np.asarray(rows, dtype=np.int64) + self.num_items * alias)

    @property
    def tokens_ANL(self) -> np.ndarray:
        """(A, N, L) int64 token ids of each item's answer in each alias."""
        return self.in_answer.reshape(len(self.tables), self.num_items, -1)

    def draw_aliases(self, num_histories: int, rngs: Iterable[np.random.Generator]) -> np.ndarray:
        """(B,) int64 alias of each of B histories, the first draw of its generator."""
        return np.fromiter((rng.integers(len(self.tables)) for rng in rngs), np.int64, num_histories)
