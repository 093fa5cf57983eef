"""Tables with SIDs of several lengths."""

import pytest

from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import word_tokenizer


@pytest.fixture
def ragged():
    """SIDs <a_1>, <a_0><b_1> and <a_0><b_0><c_0>, and two spare rows per level."""
    table = SidTable(["short", "long", "middle"], [[1, EMPTY, EMPTY], [0, 0, 0], [0, 1, EMPTY]], level_sizes=[2, 2, 1])
    return SidTrie(table), SidVocabulary.add_to(word_tokenizer(), table.level_sizes, spare_codes=2)


@pytest.fixture
def ragged_table():
    """14 SIDs of one to three codes."""
    codes = [[0, 0, EMPTY], [0, 1, 0], [0, 1, 1], [0, 2, EMPTY], [1, EMPTY, EMPTY], [2, EMPTY, EMPTY], [3, 0, 0],
             [3, 0, 1], [3, 0, 2], [3, 1, EMPTY], [3, 2, 0], [3, 2, 1], [3, 2, 2], [4, EMPTY, EMPTY]]  # fmt: skip
    return SidTable([f"item-{row}" for row in range(len(codes))], codes)
