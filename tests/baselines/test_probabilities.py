"""Probabilities of every ranker: those of its scores, at every place of a window, however long the window is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.baselines.counted import COUNTED_BASELINES
from llmrec.baselines.counted.popularity import FLOOR
from llmrec.baselines.networks import NETWORKS
from llmrec.baselines.queries import Queries, popularity
from tests.support.networks import CPU, SHORT, quick, split

WALKS = [[start, (start + 1) % 10, (start + 3) % 10, (start + 4) % 10, start] for start in range(10)]


@pytest.fixture(scope="module")
def catalog():
    return split(WALKS, [[*walk, (walk[-1] + 1) % 10] for walk in WALKS], [])


@pytest.fixture(scope="module")
def rankers(catalog):
    counted = {name: ranker(catalog, power=1.5) for name, ranker in COUNTED_BASELINES.items()}
    return {**counted, **{name: quick(name, catalog, training=SHORT) for name in NETWORKS}}


def asked(width: int) -> tuple[Queries, list[np.ndarray]]:
    """Queries at every place of three windows of up to `width` items, and the items before each answer."""
    rng = np.random.default_rng(width)
    lengths = [width, max(1, width // 2), width]
    items = np.zeros((3, width), np.int64)
    for row, length in enumerate(lengths):
        items[row, :length] = rng.integers(0, 12, length)
    sequence = np.concatenate([np.full(length + 1, row) for row, length in enumerate(lengths)])
    length = np.concatenate([np.arange(length + 1) for length in lengths])
    shuffled = rng.permutation(len(sequence))  # queries need no order
    arrays = items, sequence[shuffled], length[shuffled], np.zeros(3, np.int64), np.zeros(3, np.int64)
    queries = Queries(*map(torch.from_numpy, arrays))
    return queries, [items[row, :n] for row, n in zip(arrays[1], arrays[2], strict=True)]


def weights(ranker, name: str, histories: list[np.ndarray]) -> torch.Tensor:
    """(Q, N) positive numbers in proportion to the probabilities, by the scores of the ranker for each history."""
    if name in NETWORKS:
        return torch.cat([ranker.scores([history]) for history in histories]).double().exp()
    popular = popularity(ranker.count, CPU).double().softmax(dim=0)
    powers = torch.from_numpy(ranker.scores(histories).toarray()) ** 1.5
    share = powers / powers.sum(dim=1, keepdim=True).clamp_min(1e-300)
    return (1 - FLOOR) * share + FLOOR * popular


@pytest.mark.parametrize("width", [3, 11])  # the networks read the last 5 items
@pytest.mark.parametrize("name", [*COUNTED_BASELINES, *NETWORKS])
def test_probabilities_are_those_of_the_scores_at_every_place(rankers, name, width):
    queries, histories = asked(width)
    for exclude_seen, temperature in ((False, 1.0), (True, 0.7)):
        expected = weights(rankers[name], name, histories) ** (1 / temperature)
        if exclude_seen:
            for row, history in enumerate(histories):
                if len(set(history.tolist())) < 12:
                    expected[row, history] = 0
        expected /= expected.sum(dim=1, keepdim=True)
        found = rankers[name].probabilities(queries, exclude_seen, temperature)
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*COUNTED_BASELINES, *NETWORKS])
def test_a_gpu_answers_as_a_cpu(catalog, rankers, name):
    kind, ranker = COUNTED_BASELINES.get(name), rankers[name]
    queries, _ = asked(11)
    if kind is None:
        options = {**vars(ranker.chosen)}
        other = type(ranker)(NETWORKS[name], catalog, 0, "cuda", ranker.tensors(), **options)
    else:
        other = kind(catalog, "cuda", ranker.tensors(), power=1.5)
    found = other.probabilities(Queries(*(part.cuda() for part in queries)), True).cpu()
    torch.testing.assert_close(found, ranker.probabilities(queries, True), rtol=1e-3, atol=1e-6)
