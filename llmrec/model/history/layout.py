"""Histories in the layout of another project: tokens around items, and between a history and its answer.

`llmrec.sid.item_layout` explains the layout. Where something stands between history and answer, a history has at most
one target: the others would be learned in a place where nobody asks for them.

Shapes: B histories, n items of all of them, N items of the catalogue, L tokens of the longest SID, W tokens that an
item may take in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from llmrec.model.history.encoder import NO_ITEM, EncodedPrompts
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.item_layout import ItemLayout
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary


class LayoutHistoryEncoder(SidHistoryEncoder):
    """Histories of semantic IDs with other tokens around them; nothing is drawn.

    A history without a target ends with what stands before its answer.

    Args:
        table: Semantic IDs of the catalogue.
        vocabulary: Token ids of their codes, and the layout.
        layout: Layout of the vocabulary.

    Raises:
        ValueError: If the table needs codes that the vocabulary lacks.
    """

    def __init__(self, table: SidTable, vocabulary: SidVocabulary, layout: ItemLayout):
        super().__init__(table, vocabulary)
        self.layout = layout
        parts = (layout.suffix, layout.separator, layout.begin, layout.end)
        self.suffix, self.separator, self.begin, self.end = (np.array(part, np.int64) for part in parts)

    def encode(
        self,
        rows: np.ndarray,
        num_items: np.ndarray,
        is_target: np.ndarray,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> EncodedPrompts:
        """Encode histories; see `HistoryEncoder.encode`.

        Raises:
            ValueError: If a history has several targets, and a suffix or separator would stand before them.
        """
        ends = np.cumsum(num_items)
        owner = np.arange(len(num_items)).repeat(num_items)
        num_targets = np.bincount(owner[is_target], minlength=len(num_items))
        if num_targets.max(initial=0) > 1 and not self.layout.asks_in_place:
            raise ValueError(
                f"A history has {num_targets.max()} targets, but this checkpoint is asked behind a text that follows "
                "the history. Set targets to last_item."
            )
        is_first = np.zeros(len(rows), bool)
        is_first[(ends - num_items)[num_items > 0]] = True
        # Every item has the same W columns, of which those in use are kept.
        sids_nL = self.tokens_NL[rows]
        blocks = [
            self._columns(self.suffix, is_target),
            self._columns(self.separator, ~is_target & ~is_first),
            self._columns(self.begin, np.ones(len(rows), bool)),
            sids_nL,
            self._columns(self.end, np.ones(len(rows), bool)),
        ]
        tokens_nW = np.concatenate(blocks, axis=1)
        before = len(self.suffix) + len(self.separator) + len(self.begin)
        is_sid_W = np.repeat([False, True, False], [before, sids_nL.shape[1], len(self.end)])
        is_token = tokens_nW != EMPTY
        sizes = is_token.sum(axis=1)
        tokens = tokens_nW[is_token]
        is_answer = np.broadcast_to(is_sid_W, is_token.shape)[is_token]
        items = np.arange(len(rows)).repeat(sizes)
        lengths = np.diff(np.append(0, np.cumsum(sizes))[np.append(0, ends)])
        asked = np.concatenate([self.suffix, self.begin])
        is_asked = num_targets == 0
        places = np.cumsum(lengths)[is_asked].repeat(len(asked))
        return EncodedPrompts(
            np.insert(tokens, places, np.tile(asked, is_asked.sum())),
            np.insert(items, places, NO_ITEM),
            np.insert(is_answer, places, False),
            lengths + is_asked * len(asked),
        )

    def _columns(self, tokens: np.ndarray, is_used: np.ndarray) -> np.ndarray:
        """(n, len(tokens)) the tokens where they are used, EMPTY elsewhere."""
        return np.where(is_used[:, np.newaxis], tokens, EMPTY)
