"""k-means, trained tokenizers and encoding in several processes give what one process gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.runtime import processes
from llmrec.tokenizers import FSQ, RQVAE, RVQ, CoST, HierarchicalKMeans, RQKMeans
from llmrec.tokenizers.shared import kmeans as shared
from llmrec.tokenizers.shared.kmeans import kmeans, lloyd
from llmrec.tokenizers.shared.training_loop import Objective, train
from tests.support.clustered import books_of, catalog_of, clusters, points, views_of
from tests.support.several import in_processes

TRAINED = {"num_levels": 2, "batch_size": 100, "learning_rate": 3e-3, "max_epochs": 6, "device": "cpu"}
CODED = {**TRAINED, "codebook_size": 16}
TOKENIZERS = {
    "rq_kmeans": lambda: RQKMeans(num_levels=3, codebook_size=16, device="cpu"),
    "balanced": lambda: RQKMeans(num_levels=2, codebook_size=16, balance="capacity", device="cpu"),
    "hierarchical": lambda: HierarchicalKMeans(num_levels=2, branching=[8, 8], device="cpu"),
    "rq_vae": lambda: RQVAE(**CODED, encoder_layers=[16], latent_dim=4),
    "rvq": lambda: RVQ(**CODED),
    "fsq": lambda: FSQ(**TRAINED, encoder_layers=[16], sizes=[4, 4]),
    "cost": lambda: CoST(**CODED, encoder_layers=[16], latent_dim=4),  # compares the items of a batch
}


def found() -> dict[str, dict[str, object]]:
    """What this process finds, alone or with others; most vectors are in no cluster, so that ties would show."""
    shared.LEAST_SHARED = 0
    seeded, x = torch.Generator().manual_seed, points(3001, 12)
    start = torch.cat([x[:20], torch.full((4, 12), 99.0)])  # no point is near the last four
    everywhere = {
        "few": kmeans(points(301, 6), 9, 25, seeded(0)),
        "from a sample": kmeans(x, 8, 25, seeded(1)),
        "empty": lloyd(x, start, 3),
        "few distinct points": kmeans(points(5, 3).repeat(3, 1), 8, 5, seeded(0)),
    }
    results = {name: {"books": [book]} for name, book in everywhere.items()}
    shares = [points(count, 3)[processes.share(count)] for count in (5, 1, 0)]  # a process without a row, then both
    results["joined"] = {"books": [processes.joined(part) for part in shares]}
    results["apart"] = {"books": [weight_of_one_that_differs()]}
    results["rows"] = rows_looked_at(lambda: kmeans(x, 8, 25, seeded(1)))
    vectors = torch.cat([points(400, 10), clusters(203, 10, 30)])
    vectors[::50] = 0  # items that no view knows
    catalog, views = catalog_of(len(vectors)), views_of(text=vectors)
    for name, make in TOKENIZERS.items():
        tokenizer = make().fit(catalog, views)
        results[name] = {
            "books": [] if name == "hierarchical" else books_of(tokenizer),
            "codes": tokenizer.encode(catalog, views).codes,
            "log": [entry["loss"] for log in tokenizer.training_log for entry in log],
        }
    return results


def weight_of_one_that_differs() -> torch.Tensor:
    """Weight of an objective that is trained towards 1 in the first process and 2 in the second."""
    objective = Rank()
    train(objective, 40, torch.device("cpu"), RVQ(**TRAINED, codebook_size=4))
    return objective.weight.detach()


class Rank(Objective):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def loss(self, rows_B):
        return (self.weight - 1 - processes.rank()).square().sum()

    validation_loss = loss


def rows_looked_at(run) -> int:
    """Number of points for which this process looks for the nearest code."""
    rows, nearest = [], shared._nearest
    shared._nearest = lambda points, codebook: rows.append(len(points)) or nearest(points, codebook)
    run()
    shared._nearest = nearest
    return sum(rows)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return in_processes(2, found, tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def one():
    before = shared.LEAST_SHARED
    yield found()
    shared.LEAST_SHARED = before


@pytest.mark.parametrize("name", ["rq_vae", "rvq", "fsq", "cost", "balanced"])
def test_trained_tokenizers_have_the_losses_and_codes_of_one_process(one, several, name):
    """Gradients are rounded differently, so an item between two codes may get the other one."""
    for result in several:
        assert result[name]["log"] == pytest.approx(one[name]["log"], rel=1e-4)
        for book, expected in zip(result[name]["books"], one[name]["books"], strict=True):
            torch.testing.assert_close(book, expected, rtol=1e-3, atol=1e-3)
        assert (result[name]["codes"] == one[name]["codes"]).mean() > 0.99


def test_all_processes_end_with_the_weights_of_the_first(one, several):
    weight = one["apart"]["books"][0]
    assert 0 < weight < 1.1
    assert all(torch.equal(result["apart"]["books"][0], weight) for result in several)


def test_rows_are_joined_where_a_process_has_none(several):
    for result in several:
        assert all(
            torch.equal(*pair) for pair in zip(result["joined"]["books"], map(points, (5, 1, 0), [3] * 3), strict=True)
        )


@pytest.mark.parametrize("name", ["rq_kmeans", "hierarchical", "few", "from a sample", "empty", "few distinct points"])
def test_k_means_is_equal_to_the_last_bit(one, several, name):
    """Sums are in float64 on a CPU, so that their division does not show in float32."""
    for result in several:
        assert all(torch.equal(*books) for books in zip(result[name]["books"], one[name]["books"], strict=True))
        np.testing.assert_array_equal(result[name].get("codes", 0), one[name].get("codes", 0))


def test_each_process_looks_at_its_own_points(one, several):
    rows = [result["rows"] for result in several]
    assert sum(rows) == one["rows"] and max(rows) - min(rows) <= 25  # one point more in each iteration
