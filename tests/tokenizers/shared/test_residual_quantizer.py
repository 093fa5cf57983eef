"""The trainable residual quantiser: its loss and gradients by hand, its start, and what becomes of dead codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.tokenizers.shared.kmeans import kmeans, nearest
from llmrec.tokenizers.shared.residual_quantizer import ResidualQuantizer
from tests.support.clustered import clusters, points

FIRST, SECOND = [[0.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]


def quantizer_of(*codebooks, **options) -> ResidualQuantizer:
    books = [torch.as_tensor(book) for book in codebooks]
    quantizer = ResidualQuantizer(len(books), *books[0].shape, **options)
    with torch.no_grad():
        for parameter, book in zip(quantizer.codebooks, books, strict=True):
            parameter.copy_(book)
    return quantizer


@pytest.mark.parametrize("ste", ["per_level", "sum"])
def test_codes_vector_and_loss_by_hand(ste):
    latent = torch.tensor([[3.0, 1.0]])
    quantized = quantizer_of(FIRST, SECOND, ste=ste)(latent)
    # Level 0: (4, 0), leaves (-1, 1). Level 1: (0, 2) at 1 + 1 = 2 rather than (1, 0) at 4 + 1 = 5, leaves (-1, -1).
    assert quantized.codes.tolist() == [[1, 1]]
    assert quantized.vector.tolist() == [[4.0, 2.0]]
    # Mean over 2 dimensions: 1 and 1; with commitment .25 each; mean over the 2 levels.
    assert quantized.loss.item() == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("ste", "expected"),
    [
        # d/dz of .25 * mean((z - e)^2) / 2 levels = .25 * 2 * residual / 2 dims / 2 levels = .125 * residual.
        ("per_level", [-0.125, 0.125]),  # residual of level 0 alone: (-1, 1)
        ("sum", [-0.25, 0.0]),  # of both: (-1, 1) + (-1, -1)
    ],
)
def test_commitment_beyond_level_0_reaches_the_encoder_under_sum_alone(ste, expected):
    latent = torch.tensor([[3.0, 1.0]], requires_grad=True)
    quantizer_of(FIRST, SECOND, ste=ste)(latent).loss.backward()
    assert latent.grad.tolist() == [expected]


@pytest.mark.parametrize("ste", ["per_level", "sum"])
def test_the_gradient_of_the_vector_passes_straight_to_the_latent_and_to_no_code(ste):
    latent = torch.tensor([[3.0, 1.0]], requires_grad=True)
    quantizer = quantizer_of(FIRST, SECOND, ste=ste)
    (quantizer(latent).vector * torch.tensor([5.0, 7.0])).sum().backward()
    assert latent.grad.tolist() == [[5.0, 7.0]]
    assert all(book.grad is None or not book.grad.any() for book in quantizer.codebooks)


@pytest.mark.parametrize("ste", ["per_level", "sum"])
def test_codes_move_towards_their_residuals_and_others_stay(ste):
    quantizer = quantizer_of(FIRST, SECOND, ste=ste)
    quantizer(torch.tensor([[3.0, 1.0]])).loss.backward()
    # d/de of mean((e - r)^2) / 2 levels = (e - r) / 2: level 0 (1, -1) / 2, level 1 (1, 1) / 2.
    assert quantizer.codebooks[0].grad.tolist() == [[0, 0], [0.5, -0.5]]
    assert quantizer.codebooks[1].grad.tolist() == [[0, 0], [0.5, 0.5]]


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 6), st.booleans(), st.sampled_from(["per_level", "sum"]))
def test_the_vector_is_the_sum_of_the_codes_and_each_code_is_the_nearest(levels, size, dim, shared, ste):
    quantizer = ResidualQuantizer(levels, size, dim, ste=ste, shared=shared).eval()
    with torch.no_grad():
        for i, book in enumerate(quantizer.codebooks):
            book.copy_(points(size, dim, seed=i))
    latent = points(5, dim, seed=9)
    quantized, left = quantizer(latent), latent
    for level, book in enumerate(quantizer.levels):
        distances = (left[:, None] - book).square().sum(2)
        chosen = distances.gather(1, quantized.codes[:, level : level + 1])[:, 0]
        torch.testing.assert_close(chosen, distances.amin(1), atol=1e-4, rtol=1e-4)
        left = left - book[quantized.codes[:, level]]
    torch.testing.assert_close(quantized.vector, latent - left, atol=1e-5, rtol=1e-5)


def test_the_start_is_residual_kmeans():
    latent, generator = points(300, 4), torch.Generator().manual_seed(3)
    quantizer = ResidualQuantizer(2, 8, 4)
    quantizer.start(latent, torch.Generator().manual_seed(3))
    left = latent[torch.randperm(300, generator=generator)]
    for book in quantizer.codebooks:
        expected = kmeans(left, 8, 25, generator)
        torch.testing.assert_close(book.detach(), expected)
        left = left - expected[nearest(left, expected)[0]]


def test_a_shared_codebook_is_one_parameter_and_has_codes_for_every_level():
    latent = 10 * clusters(400, 6, 8, spread=0.02)  # first residuals are much shorter than the latent vectors
    quantizer = ResidualQuantizer(2, 16, 6, shared=True)
    quantizer.start(latent, torch.Generator().manual_seed(0))
    assert len(list(quantizer.parameters())) == 1 and quantizer.levels[0] is quantizer.levels[1]
    codes = quantizer.eval()(latent).codes
    assert codes[:, 0].unique().numel() >= 8
    assert not set(codes[:, 0].tolist()) & set(codes[:, 1].tolist())


def test_sinkhorn_spreads_the_last_level_in_training_and_only_there():
    latent = points(64, 3)
    quantizer = quantizer_of(points(8, 3, 1), 0.1 * points(8, 3, 2) + 5, sinkhorn_epsilon=0.003)
    plain = quantizer_of(*quantizer.codebooks)
    trained, judged = quantizer(latent).codes, quantizer.eval()(latent).codes
    assert torch.equal(trained[:, 0], judged[:, 0]) and torch.equal(judged, plain.eval()(latent).codes)
    largest = [codes[:, 1].bincount(minlength=8).max() for codes in (trained, judged)]
    assert largest[0] <= 12 < largest[1]


def test_usage_is_a_running_mean_in_training_alone():
    quantizer = quantizer_of(FIRST)
    latent = torch.tensor([[4.0, 0.0]] * 3 + [[0.0, 0.0]])
    quantizer(latent)
    # Even use of 2 codes is 1; code 1 has 3 of 4 rows, 1.5 of even use: .99 * 1 + .01 * 1.5.
    assert quantizer.usage[0].tolist() == pytest.approx([0.995, 1.005])
    quantizer.eval()(latent)
    assert quantizer.usage[0].tolist() == pytest.approx([0.995, 1.005])


def test_a_dead_code_moves_to_a_residual_and_is_forgotten_by_the_optimiser():
    quantizer = quantizer_of([[0.0, 0.0], [90.0, 90.0]], [[0.0, 0.0], [1.0, 1.0]])
    optimizer = torch.optim.AdamW(quantizer.parameters(), 1e-9, weight_decay=0)
    latent = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    quantizer(latent).loss.backward()
    optimizer.step()
    before = [book.detach().clone() for book in quantizer.codebooks]
    for book in quantizer.codebooks:
        optimizer.state[book]["exp_avg_sq"].fill_(7)
    quantizer.usage.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.031]]))
    quantizer.restart_dead(latent, optimizer, torch.Generator().manual_seed(0))
    moved = quantizer.codebooks[0][1].detach()
    assert (latent - moved).abs().amax(1).min() < 0.06  # within the noise, .01 of a standard deviation near 1
    assert torch.equal(quantizer.codebooks[0][0], before[0][0]) and torch.equal(quantizer.codebooks[1], before[1])
    assert optimizer.state[quantizer.codebooks[0]]["exp_avg_sq"].tolist() == [[7, 7], [0, 0]]
    assert optimizer.state[quantizer.codebooks[1]]["exp_avg_sq"].tolist() == [[7, 7], [7, 7]]
    assert quantizer.usage.tolist() == [pytest.approx([1, 1]), pytest.approx([1, 0.031])]
