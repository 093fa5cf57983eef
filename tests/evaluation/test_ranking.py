"""A ranking's shape, and the beam width that fills one."""

import numpy as np
import pytest

from llmrec.evaluation.ranking import Ranking, default_num_beams
from llmrec.sid.table import SidTable


def test_a_ranking_of_unequal_shapes_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        Ranking(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 2)))


def test_default_num_beams():
    assert default_num_beams(10_000, [5, 10]) == 50
    assert default_num_beams(10_000, [5, 20]) == 100
    assert default_num_beams(30, [10]) == 30


def test_default_num_beams_count_sids_where_items_have_several():
    """Three items, of which the first has 60 SIDs: the 61st beam is surely of another item, the 62nd of a third one."""
    codes = np.stack([np.arange(63) // 8, np.arange(63) % 8], axis=1)
    table = SidTable(["a", "b", "c"], codes, item_rows=[0] * 60 + [1, 1, 2])
    assert [default_num_beams(3, [k], table) for k in (1, 2, 3, 10)] == [50, 61, 63, 63]
    assert default_num_beams(3, [10], SidTable(["a", "b", "c"], codes[:3])) == 3
