"""Twelve items of the shared catalogue in pieces of their features."""

from __future__ import annotations

import numpy as np

from llmrec.sid.pieces.pieces import Pieces
from llmrec.sid.table import SidTable
from llmrec.tokenizers.action_piece.merges import learn_merges
from tests.conftest import CODES
from tests.support.extended import toy_sequences

KIND_SIZES = (4, 4, 4, 2)


def piece_table(num_items: int = 12, num_merges: int = 20) -> SidTable:
    """Answers in pieces learned from the histories of the toy catalogue; the last code tells items 4 and 5 apart."""
    codes = np.column_stack([CODES, np.arange(12) == 5])
    features = Pieces(KIND_SIZES, np.empty((0, 2), np.int64), np.empty(0)).features(codes)
    merges = learn_merges([features[rows[:-2]] for rows in toy_sequences()], sum(KIND_SIZES), num_merges)
    pieces = Pieces(KIND_SIZES, *merges)
    item_ids = [f"item-{row}" for row in range(num_items)]
    return SidTable(item_ids, pieces.answers(features[:num_items]), pieces=pieces)
