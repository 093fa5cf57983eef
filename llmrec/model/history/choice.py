"""The history encoder of a vocabulary: how its model reads and writes items."""

from __future__ import annotations

from llmrec.model.history.aliases import AliasHistoryEncoder
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.model.history.layout import LayoutHistoryEncoder
from llmrec.model.history.pieces import PieceHistoryEncoder
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.aliases import aliases_of, refuse_aliases
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary


def make_history_encoder(table: SidTable, vocabulary: SidVocabulary) -> HistoryEncoder:
    """Make what writes histories and answers as tokens.

    Args:
        table: Semantic IDs of the catalogue.
        vocabulary: Tokens of the model, which say how it reads items.

    Raises:
        ValueError: If the table needs codes that the vocabulary lacks, or a head cannot read it.
    """
    if vocabulary.has_one_block:
        return PieceHistoryEncoder(table, vocabulary)
    if vocabulary.layout is not None:
        refuse_aliases(table, "a layout of another project")
        return LayoutHistoryEncoder(table, vocabulary, vocabulary.layout)
    has_aliases = vocabulary.head is None and len(aliases_of(table)) > 1  # a head refuses such a table
    return AliasHistoryEncoder(table, vocabulary) if has_aliases else SidHistoryEncoder(table, vocabulary)
