"""A ranking's shape, and the beam width that fills one."""

import numpy as np
import pytest

from llmrec.evaluation.ranking import Ranking, default_num_beams


def test_a_ranking_of_unequal_shapes_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        Ranking(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 2)))


def test_default_num_beams():
    assert default_num_beams(10_000, [5, 10]) == 50
    assert default_num_beams(10_000, [5, 20]) == 100
    assert default_num_beams(30, [10]) == 30
