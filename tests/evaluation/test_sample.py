"""What a report says of a sample of the held-out examples."""

import numpy as np
import pytest

from llmrec.evaluation.metrics import Position
from llmrec.evaluation.protocol import COLUMNS, Outcome
from llmrec.evaluation.summary import sample_of
from llmrec.evaluation.tables import sample_notes


def outcomes(start):
    start = np.asarray(start)
    position = Position(start, np.ones_like(start), start)
    return {("ours", column): Outcome(position, start[:, None], np.zeros_like(start), 1.0) for column in COLUMNS}


def test_the_standard_error_is_that_of_many_samples():
    rng = np.random.default_rng(0)
    population = np.where(rng.random(4000) < 0.3, 0, -1)  # hits at rank 1, and misses
    samples = [rng.choice(population, 1000, replace=False) for _ in range(400)]
    spread = np.std([(sample == 0).mean() for sample in samples])
    said = sample_of(outcomes(samples[0]), len(population), [1, 10], seed=7)
    assert said["of"] == 4000 and said["seed"] == 7
    assert said["standard_error"]["plain"]["recall@10"] == pytest.approx(spread, rel=0.1)
    metrics = {"sample": said, "num_examples": 1000, "systems": {"ours": {}}}
    assert "1,000 examples were drawn from 4,000 with seed 7" in sample_notes(metrics)[0]


def test_nothing_is_said_of_all_examples():
    assert sample_of(outcomes([0, -1]), 2, [10], seed=0) is None
    assert sample_notes({"sample": None}) == sample_notes({}) == []
