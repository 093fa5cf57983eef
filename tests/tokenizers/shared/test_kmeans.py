"""k-means equals a plain Lloyd in float64, is as good as scikit-learn's, and its draws and sums are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.cluster import kmeans_plusplus as sklearn_plus_plus

from llmrec.tokenizers.shared import kmeans as residual
from llmrec.tokenizers.shared.kmeans import kmeans, kmeans_plus_plus, lloyd, nearest, tf32_products

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clustered(num_points: int, dim: int, num_clusters: int, seed: int = 0) -> torch.Tensor:
    generator = seeded(seed)
    centres = torch.randn(num_clusters, dim, generator=generator)
    member = torch.randint(num_clusters, (num_points,), generator=generator)
    return centres[member] + 0.5 * torch.randn(num_points, dim, generator=generator)


def naive_lloyd(points: torch.Tensor, codebook: torch.Tensor, iterations: int) -> torch.Tensor:
    points, codebook = points.double(), codebook.double()
    for _ in range(iterations):
        codes = (points[:, None] - codebook[None]).square().sum(2).argmin(1)
        codebook = torch.stack([points[codes == code].mean(0) for code in range(len(codebook))])
    return codebook.float()


def distortion(points: torch.Tensor, codebook: torch.Tensor) -> float:
    return float(nearest(points, codebook)[1].double().mean())


@pytest.mark.parametrize("iterations", [1, 3, 12])
@pytest.mark.parametrize("chunk_bytes", [4 * 9 * 37, 2**25])
def test_lloyd_equals_a_plain_one_in_float64_from_the_same_start(iterations, chunk_bytes, monkeypatch):
    monkeypatch.setattr(residual, "CHUNK_BYTES", chunk_bytes)
    x = clustered(500, 6, 12)
    start = kmeans_plus_plus(x, 9, seeded())
    torch.testing.assert_close(lloyd(x, start, iterations), naive_lloyd(x, start, iterations), rtol=1e-4, atol=1e-5)


def test_lloyd_leaves_its_start_and_its_points_as_they_were():
    x = clustered(200, 4, 5)
    before, start = x.clone(), kmeans_plus_plus(x, 5, seeded())
    kept = start.clone()
    lloyd(x, start, 5)
    assert torch.equal(x, before) and torch.equal(start, kept)


def test_a_code_that_gets_no_point_restarts_within_lloyd():
    x = torch.tensor([[0.0], [0.2], [5.0], [5.2], [9.0]])
    codebook = lloyd(x, torch.tensor([[1.0], [6.0], [99.0]]), 10)
    assert sorted(codebook.flatten().tolist()) == pytest.approx([0.1, 5.1, 9.0])


def test_distortion_is_that_of_scikit_learn():
    x = clustered(6000, 24, 200)
    start = x[:64].contiguous()
    theirs = KMeans(64, init=start.numpy(), n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(x.numpy())
    assert distortion(x, lloyd(x, start, 20)) == pytest.approx(theirs.inertia_ / 6000, rel=0.001)
    random = KMeans(64, init="random", n_init=1, max_iter=20, tol=0, random_state=1).fit(x.numpy())
    assert distortion(x, kmeans(x, 64, 20, seeded())) < 1.005 * random.inertia_ / 6000


def test_sums_by_product_equal_sums_by_row(monkeypatch):
    x = torch.randint(-50, 50, (700, 5), generator=seeded()).float()  # whole numbers: float32 sums are exact
    codes = torch.randint(0, 20, (700,), generator=seeded(1))
    expected = torch.stack([x[codes == code].sum(0) for code in range(24)])
    assert torch.equal(residual._sums(x, codes, 24), expected.double())
    for rows in (700, 300, 100):  # a whole number of pieces, some rows over, fewer rows than the 170 pieces
        monkeypatch.setattr(residual, "CHUNK_BYTES", 4 * 24 * rows)
        assert torch.equal(residual._sums_by_product(x, codes, 24), expected)


@pytest.mark.parametrize("num_moved", [0, 5, 170, 180, 700])
def test_sums_after_some_points_moved_are_those_of_all_points(num_moved):
    x = torch.randint(-50, 50, (700, 5), generator=seeded()).float()
    before = torch.randint(0, 20, (700,), generator=seeded(1))
    after = before.clone()
    after[torch.randperm(700, generator=seeded(2))[:num_moved]] += 3
    sums, moved = residual._sums(x, before, 24), (after != before).nonzero().flatten()
    expected = torch.stack([x[after == code].sum(0) for code in range(24)])
    assert torch.equal(residual._sums_after(x, moved, after, before, sums), expected.double())


@pytest.mark.parametrize(("uniform", "row"), [(0.0, 1), (0.24, 1), (0.26, 3), (0.999, 3)])
def test_a_draw_is_proportional_to_the_weights_and_never_of_a_point_without(uniform, row):
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0])
    drawn = residual._draw(weights, torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [row]


def test_a_draw_among_no_weight_at_all_is_the_last_row():
    assert residual._draw(torch.zeros(4), torch.tensor([0.5], dtype=torch.float64)).tolist() == [3]


def test_the_candidate_that_leaves_the_least_is_taken(monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([0]))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[0.9, 0.1]], dtype=torch.float64))
    x = torch.tensor([[0.0], [4.0], [5.0], [10.0]])
    # From 0, squared distances are 0, 16, 25, 100: .9 of their sum, 141, draws the 10, and .1 the 4. The 4 leaves less:
    # 0 + 0 + 1 + 36 instead of 0 + 16 + 25 + 0.
    assert kmeans_plus_plus(x, 2, seeded()).flatten().tolist() == [0, 4]


def test_a_start_equals_a_plain_greedy_one_in_float64_from_the_same_draws():
    x, num_codes = clustered(300, 6, 12), 9
    generator = seeded(3)
    chosen = [int(torch.randint(300, (1,), generator=generator))]
    draws = torch.rand(num_codes - 1, 4, generator=generator, dtype=torch.float64)
    distances = np.square(x.double().numpy()[:, None] - x.double().numpy()[None]).sum(2)
    for uniforms in draws.numpy():
        mass = distances[chosen].min(0).cumsum()
        candidates = np.searchsorted(mass, uniforms * mass[-1], side="right")
        chosen.append(min(candidates, key=lambda row: distances[[*chosen, row]].min(0).sum()))
    assert torch.equal(kmeans_plus_plus(x, num_codes, seeded(3)), x[chosen])


def test_a_greedy_start_is_better_than_one_of_a_candidate_a_draw_and_as_good_as_that_of_scikit_learn():
    x = clustered(2000, 12, 60)

    def one_candidate(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(2000, (1,), generator=generator)
        while len(chosen) < 40:
            weights = nearest(x, x[chosen])[1]
            chosen = torch.cat([chosen, torch.multinomial(weights, 1, generator=generator)])
        return x[chosen]

    def theirs(seed: int) -> torch.Tensor:
        return torch.from_numpy(sklearn_plus_plus(x.numpy(), 40, random_state=seed)[0])

    ours = np.mean([distortion(x, kmeans_plus_plus(x, 40, seeded(seed))) for seed in range(8)])
    assert ours < 0.95 * np.mean([distortion(x, one_candidate(seeded(seed))) for seed in range(8)])
    assert ours == pytest.approx(np.mean([distortion(x, theirs(seed)) for seed in range(8)]), rel=0.03)


def test_equal_points_of_any_length_are_not_drawn_twice_while_there_are_others():
    x = torch.randn(12, 300, generator=seeded(2)).repeat(30, 1)
    assert len(kmeans_plus_plus(x, 12, seeded()).unique(dim=0)) == 12


def test_a_start_has_distinct_points_while_there_are_any():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]]).repeat(40, 1)
    assert len(kmeans_plus_plus(x, 3, seeded()).unique(dim=0)) == 3
    assert kmeans_plus_plus(x, 5, seeded()).unique(dim=0).tolist() == x[[0, 1, 2]].tolist()
    assert kmeans_plus_plus(x, 1, seeded()).shape == (1, 2)


def test_a_start_of_many_points_looks_at_a_sample_and_iterations_at_all(monkeypatch):
    monkeypatch.setattr(residual, "START_POINTS_PER_CODE", 4)
    seen = []
    distances_of = residual._distances_of

    def counted(points, rows, norms):
        seen.append((len(points), len(rows)))
        return distances_of(points, rows, norms)

    monkeypatch.setattr(residual, "_distances_of", counted)
    x = clustered(3000, 4, 10)
    codebook = kmeans(x, 10, 25, seeded())
    assert seen == [(40, 1)] + [(40, 4)] * 9  # 2 + ln 10 candidates
    codes = nearest(x, codebook)[0]
    torch.testing.assert_close(codebook[3], x[codes == 3].mean(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(kmeans(x, 10, 25, seeded()), codebook)


def test_tf32_is_on_within_the_block_alone():
    name = "fp32_precision" if hasattr(torch.backends.cuda.matmul, "fp32_precision") else "allow_tf32"
    before, precision = getattr(torch.backends.cuda.matmul, name), torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="inside"), tf32_products():
        assert getattr(torch.backends.cuda.matmul, name) in ("tf32", True)
        raise RuntimeError("inside")
    assert getattr(torch.backends.cuda.matmul, name) == before
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.gpu
def test_kmeans_on_a_gpu_is_the_same_twice_and_as_good_as_on_the_cpu():
    x = clustered(100_000, 96, 300)
    first, second = (kmeans(x.cuda(), 256, 20, seeded()).cpu() for _ in range(2))
    assert torch.equal(first, second)
    assert distortion(x, first) == pytest.approx(distortion(x, kmeans(x, 256, 20, seeded())), rel=0.005)
    codes = nearest(x.cuda(), first.cuda())[0].cpu()
    assert np.bincount(codes, minlength=256).min() > 0
