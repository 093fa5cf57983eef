"""Balanced assignments: exact sizes, prices close to the optimum of the Hungarian method, OneRec's loop by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from llmrec.tokenizers.shared.balanced import (
    balance_prices,
    balanced_assignment,
    balanced_kmeans,
    onerec_assignment,
    round_to_balance,
)
from llmrec.tokenizers.shared.kmeans import code_means, kmeans_plus_plus, squared_distances

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clustered(num_points: int, dim: int, num_clusters: int, seed: int = 0) -> torch.Tensor:
    """Points of clusters of very uneven size: their nearest codes are far from balanced."""
    generator = seeded(seed)
    share = torch.rand(num_clusters, generator=generator).pow(4) + 1e-3
    member = torch.multinomial(share, num_points, replacement=True, generator=generator)
    centres = torch.randn(num_clusters, dim, generator=generator)
    return centres[member] + 0.7 * torch.randn(num_points, dim, generator=generator)


def costs(num_points: int, num_codes: int, dim: int = 16) -> torch.Tensor:
    points = clustered(num_points, dim, 40)
    return squared_distances(points, points[:num_codes])


def total(cost: torch.Tensor, codes: torch.Tensor) -> float:
    return float(cost.gather(1, codes[:, None]).double().sum())


def optimal_assignment(cost: torch.Tensor) -> torch.Tensor:
    """The cheapest balanced assignment, by the Hungarian method on repeated columns; N is a multiple of K."""
    each = cost.shape[0] // cost.shape[1]
    assert each * cost.shape[1] == cost.shape[0]
    _, columns = linear_sum_assignment(cost.double().numpy().repeat(each, axis=1))
    return torch.from_numpy(columns // each)


def assert_balanced(codes: torch.Tensor, num_points: int, num_codes: int) -> None:
    sizes = torch.bincount(codes, minlength=num_codes)
    assert codes.shape == (num_points,) and len(sizes) == num_codes
    assert sizes.min() >= num_points // num_codes and sizes.max() <= -(-num_points // num_codes)


@given(st.integers(1, 60), st.integers(1, 12), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_sizes_differ_by_at_most_one_whatever_the_costs(num_points, num_codes, by_turns, seed):
    cost = torch.randint(0, 4, (num_points, num_codes), generator=seeded(seed)).float()  # many ties
    codes = onerec_assignment(cost, seeded()) if by_turns else balanced_assignment(cost)
    assert_balanced(codes, num_points, num_codes)


def test_prices_move_the_item_that_loses_least():
    cost = torch.tensor([[0.0, 9.0], [0.0, 2.0], [0.0, 5.0], [3.0, 0.0]])
    assert balanced_assignment(cost).tolist() == optimal_assignment(cost).tolist() == [0, 1, 0, 1]


def test_prices_are_within_one_and_a_half_percent_of_the_optimum():
    cost = costs(1200, 24)
    optimum = total(cost, optimal_assignment(cost))
    assert total(cost, cost.argmin(1)) < 0.95 * optimum  # or balance would be no constraint here
    assert optimum <= total(cost, balanced_assignment(cost)) * (1 + 1e-9)
    assert total(cost, balanced_assignment(cost)) < 1.015 * optimum


def test_prices_prove_how_good_they_are_without_an_optimum():
    """What points pay at their cheapest codes, less what codes take from N / K points each, is never above the cost."""
    cost = costs(3000, 60)  # 50 points per code
    prices = balance_prices(cost)
    bound = float((cost + prices).amin(1).double().sum() - 50 * prices.double().sum())
    assert bound <= total(cost, round_to_balance(cost, prices)) < 1.015 * bound


def test_prices_carry_over_to_almost_the_same_costs():
    cost = costs(2000, 40)
    prices = balance_prices(cost)
    moved = cost * (1 + 0.02 * torch.rand(cost.shape, generator=seeded()))
    again = total(moved, round_to_balance(moved, balance_prices(moved, prices)))
    assert again == pytest.approx(total(moved, balanced_assignment(moved)), rel=0.01)


def test_equal_points_are_split():
    codebook, codes = balanced_kmeans(torch.ones(30, 3), 4, 5, seeded())
    assert_balanced(codes, 30, 4)
    torch.testing.assert_close(codebook, torch.ones(4, 3))


def test_onerec_takes_the_nearest_of_what_is_left():
    cost = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0], [3.0, 5.0, 0.0], [4.0, 5.0, 9.0], [0.0, 5.0, 0.0]])
    assert torch.randperm(3, generator=seeded(3)).tolist() == [1, 0, 2]
    # Code 1 takes rows 1 and 0, code 0 rows 4 and 2, and code 2 has to take row 3, for 9 where 4 would do.
    assert onerec_assignment(cost, seeded(3)).tolist() == [1, 1, 0, 2, 0]


@pytest.mark.parametrize("by_turns", [False, True])
def test_balanced_kmeans_finds_planted_clusters_of_one_size(by_turns):
    centres, member = 20 * torch.eye(6), torch.arange(120) % 6
    points = centres[member] + 0.1 * torch.randn(120, 6, generator=seeded())
    codebook, codes = balanced_kmeans(points, 6, 10, seeded(), by_turns)
    assert_balanced(codes, 120, 6)
    assert (codebook[codes] - centres[member]).square().sum(1).max() < 0.05
    again = balanced_kmeans(points, 6, 10, seeded(), by_turns)
    assert torch.equal(again[0], codebook) and torch.equal(again[1], codes)


def test_balanced_kmeans_ends_where_the_optimum_in_every_iteration_ends():
    points = clustered(600, 16, 40)
    codebook = kmeans_plus_plus(points, 12, seeded())
    for _ in range(15):
        codebook, _ = code_means(points, optimal_assignment(squared_distances(points, codebook)), codebook)
    slow = squared_distances(points, codebook)
    fast_codebook, codes = balanced_kmeans(points, 12, 15, seeded())
    fast = squared_distances(points, fast_codebook)
    assert total(fast, codes) == pytest.approx(total(slow, optimal_assignment(slow)), rel=0.02)


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(ValueError, match="5 points cannot fill 6 balanced codes; use at most 5"):
        balanced_kmeans(torch.ones(5, 2), 6, 3, seeded())
    with pytest.raises(ValueError, match="infinite or not numbers"):
        balanced_assignment(torch.tensor([[0.0, float("inf")]]))


@pytest.mark.gpu
def test_prices_on_a_gpu_are_the_same_twice_and_as_good():
    cost = costs(3000, 60)
    first, second = (balanced_assignment(cost.cuda()) for _ in range(2))
    assert torch.equal(first, second)
    assert_balanced(first.cpu(), 3000, 60)
    assert total(cost, first.cpu()) == pytest.approx(total(cost, balanced_assignment(cost)), rel=0.005)
