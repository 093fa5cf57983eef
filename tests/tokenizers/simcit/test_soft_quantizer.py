"""The soft quantiser: mixtures by hand, noise and temperature, the similarity of codes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.simcit.soft_quantizer import SoftQuantizer
from tests.support.clustered import points


def quantizer_of(
    num_levels: int = 3, codebook_size: int = 5, dim: int = 4, seed: int = 0, relative: bool = False
) -> SoftQuantizer:
    return SoftQuantizer(num_levels, codebook_size, dim, torch.Generator().manual_seed(seed), relative)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 100), st.booleans())
def test_without_noise_and_at_temperature_zero_codes_are_hard(num_levels, codebook_size, seed, relative):
    quantizer, latent = quantizer_of(num_levels, codebook_size, 4, seed, relative), points(30, 4, seed)
    quantizer.temperature.fill_(1e-7)
    soft = quantizer(latent)
    prefixes, codes = quantizer.hard(latent)
    assert torch.equal(torch.stack([weights.argmax(1) for weights in soft.weights], 1), codes)
    torch.testing.assert_close(soft.prefixes, prefixes)
    assert torch.equal(ResidualCodebooks(list(quantizer.codebooks)).codes(latent), codes)


def test_a_mixture_by_hand():
    quantizer = quantizer_of(2, 2, 1)
    quantizer.load_state_dict({
        "codebooks.0": torch.tensor([[0.0], [2.0]]), "codebooks.1": torch.tensor([[0.0], [1.0]]),
        "temperature": torch.tensor(0.5), "noise": torch.tensor(1.0), "hardness": torch.tensor(0.0),
    })  # fmt: skip
    soft = quantizer(torch.tensor([[0.5]]))
    far = 1 / (1 + math.exp((2.25 - 0.25) / 0.5))  # of the code 2, in squared distances .25 and 2.25
    left = 0.5 - 2 * far
    upper = 1 / (1 + math.exp(((left - 1) ** 2 - left**2) / 0.5))
    assert soft.weights[0][0, 1].item() == pytest.approx(far) and soft.weights[1][0, 1].item() == pytest.approx(upper)
    assert soft.prefixes.flatten().tolist() == pytest.approx([2 * far, 2 * far + upper])


def test_relative_distances_by_hand():
    quantizer = quantizer_of(1, 3, 1, relative=True)
    with torch.no_grad():
        quantizer.codebooks[0].copy_(torch.tensor([[0.0], [1.0], [3.0]]))
    quantizer.temperature.fill_(0.5)
    # Squared distances of 1 are 1, 0 and 4, of mean 5 / 3 and variance (4 + 25 + 49) / 27.
    unit = (78 / 27) ** 0.5
    shares = torch.tensor([1.0, 0.0, 4.0]).div(-0.5 * unit).softmax(0)
    torch.testing.assert_close(quantizer(torch.tensor([[1.0]])).weights[0][0], shares)


@pytest.mark.parametrize("relative", [True, False])
def test_relative_distances_alone_pin_the_scale(relative):
    """Vectors and codes of a tenth are quantised alike; distances as they are become a hundredth, and mixtures soft."""
    quantizer, latent = quantizer_of(3, 16, relative=relative), points(50, 4)
    quantizer.temperature.fill_(0.02)
    before = quantizer(latent)
    with torch.no_grad():
        for codebook in quantizer.codebooks:
            codebook.mul_(0.1)
    after = quantizer(0.1 * latent)
    largest = [torch.stack(each.weights).amax(2).mean().item() for each in (before, after)]
    if relative:
        torch.testing.assert_close(after.prefixes, 0.1 * before.prefixes, rtol=1e-3, atol=1e-5)
        assert largest[1] == pytest.approx(largest[0], rel=1e-3)
    else:
        assert largest[1] < 0.5 * largest[0]


def test_hard_codes_are_exported_ones_with_the_gradient_of_mixtures():
    soft, hard = quantizer_of(1, 5, relative=True), quantizer_of(1, 5, relative=True)
    hard.hardness.fill_(1.0)
    gradients, latent = [], points(30, 4)
    for quantizer in (soft, hard):
        quantizer.temperature.fill_(0.3)
        rows = latent.clone().requires_grad_()
        (weights,) = quantizer(rows).weights
        (weights * torch.arange(5)).sum().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    prefixes, codes = hard.hard(latent)
    torch.testing.assert_close(hard(latent).weights[0], torch.nn.functional.one_hot(codes[:, 0], 5).float())
    torch.testing.assert_close(hard(latent).prefixes, prefixes)
    assert (soft(latent).prefixes - prefixes).abs().max() > 0.1


def test_vectors_as_far_from_all_codes_have_a_gradient():
    quantizer = quantizer_of(1, 2, 2, relative=True)
    with torch.no_grad():
        quantizer.codebooks[0].copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    latent = torch.zeros(1, 2, requires_grad=True)
    quantizer(latent).prefixes.sum().backward()
    assert latent.grad.isfinite().all()


def test_low_temperature_does_not_remove_noise_but_its_scale_does():
    quantizer, latent = quantizer_of(1, 16), points(2000, 4)
    chosen = {}
    for temperature, noise in ((1.0, 1.0), (1e-4, 1.0), (1.0, 0.0)):
        quantizer.temperature.fill_(temperature)
        quantizer.noise.fill_(noise)
        soft = quantizer(latent, quantizer.draw(2000, torch.Generator().manual_seed(0)))
        chosen[temperature, noise] = soft.weights[0].argmax(1)
    assert torch.equal(chosen[1.0, 1.0], chosen[1e-4, 1.0])
    nearest = quantizer.hard(latent)[1][:, 0]
    assert torch.equal(chosen[1.0, 0.0], nearest) and (chosen[1.0, 1.0] == nearest).float().mean() < 0.5


def test_noise_draws_a_code_with_its_share_at_temperature_one():
    quantizer = quantizer_of(1, 3, 2)
    quantizer.noise.fill_(1.0)
    latent = points(1, 2).expand(20_000, 2)
    drawn = quantizer(latent, quantizer.draw(20_000, torch.Generator().manual_seed(0))).weights[0].argmax(1)
    shares = quantizer(latent[:1]).weights[0][0]
    torch.testing.assert_close(drawn.bincount(minlength=3) / 20_000, shares, atol=0.015, rtol=0)


def test_similarity_is_the_mean_cosine_of_different_codes():
    quantizer = quantizer_of(1, 3, 2)
    with torch.no_grad():
        quantizer.codebooks[0].copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0], [-3.0, 0.0]]))
    assert quantizer.similarity().item() == pytest.approx((0 - 1 + 0) / 3)
