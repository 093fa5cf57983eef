"""A ranker that was warmed up rounds all batches to a few sizes, and answers as before."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.decoding.tree_forward import Rounding
from llmrec.recommender import Recommender
from llmrec.serve.warm_up import batch_sizes, warm_up


@pytest.fixture
def shapes(monkeypatch) -> list[tuple]:
    """Shapes of the passes that would be captured on a GPU."""
    found = []

    class Uncaptured:
        def run(self, search, inputs, kind):
            found.append(tuple(tuple(each.shape) for each in inputs))
            return search(*inputs)

    monkeypatch.setattr("llmrec.decoding.tree_forward.CudaGraphs", Uncaptured)
    return found


def test_no_request_meets_a_size_that_was_not_captured(tuned, shapes):
    plain = Recommender.from_pretrained(tuned, device="cpu").ranker
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    ranker = recommender.ranker
    ranker.capture = True
    assert len(list(warm_up(recommender.answerer, (1, 4, 8), k=3))) == len(shapes) == 2 * 3 * 4
    captured = set(shapes)
    assert all(shapes.count(each) >= 2 for each in captured)
    rng = np.random.default_rng(0)
    for rows in range(1, 9):
        histories = [rng.integers(12, size=rng.integers(1, 11)) for _ in range(rows)]
        found, expected = (each.rank(histories, 3, exclude=histories) for each in (ranker, plain))
        assert np.array_equal(found.items, expected.items)
        assert np.allclose(found.scores, expected.scores, atol=1e-5)
    assert set(shapes) == captured


def test_without_graphs_one_answer_is_enough(tuned, shapes):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    assert list(warm_up(recommender.answerer, (1, 4, 8), k=3)) == [(1, 3)] and shapes == []


def test_sizes_beyond_the_largest_are_rounded_in_fine_steps():
    rounding = Rounding(rows=(1, 4), lengths=(24, 48))
    assert [rounding.num_rows(count) for count in (1, 2, 4, 5, 17)] == [1, 4, 4, 8, 32]
    assert [rounding.length(length) for length in (3, 24, 25, 49, 129)] == [24, 24, 48, 56, 144]


def test_batches_have_few_sizes():
    assert [batch_sizes(most) for most in (1, 4, 8, 64, 100)] == [
        [1], [1, 4], [1, 8], [1, 8, 16, 32, 64], [1, 8, 16, 32, 64, 100],
    ]  # fmt: skip
