"""Gradient caching: the gradient of the whole batch, noise included, with activations of one part alive at a time."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.tokenizers.simcit import SimCIT
from llmrec.tokenizers.simcit.contrast import nt_xent
from llmrec.tokenizers.simcit.gradient_cache import in_parts
from tests.support.clustered import books_of, catalog_of, clusters, points, views_of


class Watched(nn.Module):
    """An encoder that counts how many of its activations are alive whenever it starts."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.alive = nn.Linear(4, 3), [], []

    def forward(self, x):
        self.alive.append(sum(ref() is not None for ref in self.seen))
        hidden = self.layer(x).tanh()
        self.seen.append(weakref.ref(hidden))
        return hidden.square()


def passed(part_size: int | None) -> tuple[Watched, torch.Tensor]:
    torch.manual_seed(0)
    encoder, batch = Watched(), points(12, 4)
    out = torch.cat(in_parts(encoder, part_size, batch))
    (out @ out.T).logsumexp(1).sum().backward()  # every row meets every other
    return encoder, encoder.layer.weight.grad


def test_activations_of_one_part_are_alive_at_a_time_and_the_gradient_is_that_of_the_whole():
    whole, expected = passed(None)
    parts, found = passed(3)
    torch.testing.assert_close(found, expected)
    assert whole.alive == [0]
    assert len(parts.alive) == 4 + 4  # each part once forward and once again
    assert parts.alive[:4] == [0, 0, 0, 0]  # nothing is kept by the forward pass
    assert max(parts.alive[4:]) <= 1
    assert all(ref() is None for ref in parts.seen)


def test_a_part_as_large_as_the_batch_is_computed_once():
    assert len(passed(12)[0].alive) == len(passed(99)[0].alive) == 1


def test_without_gradient_nothing_is_computed_twice():
    encoder = Watched()
    with torch.no_grad():
        assert len(in_parts(encoder, 5, points(12, 4))) == 3
    assert len(encoder.alive) == 3


def gradients(
    micro_batch_size: int | None, dtype: torch.dtype = torch.float32, **options
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of 96 items, some twice, some equal in a view, some missing in one."""
    text, behaviour = clusters(90, 10, 12), points(90, 6, seed=3)
    text[5], behaviour[7:20] = text[6], 0
    given = {
        "num_levels": 3, "codebook_size": 8, "encoder_layers": [32], "latent_dim": 16, "batch_size": 96,
        "device": "cpu", "seed": 1, **options,
    }  # fmt: skip
    tokenizer = SimCIT(micro_batch_size=micro_batch_size, **given)
    given_views = views_of(text=text, behaviour=behaviour)
    vectors = JointVectors(catalog_of(90), given_views)
    joint = vectors.of(torch.arange(90).numpy())
    objective = tokenizer.objective(joint, vectors.dims, torch.Generator().manual_seed(0))
    objective.points = objective.to(dtype).points.to(dtype)
    loss = objective.loss(torch.cat([torch.arange(90), torch.arange(6)]))
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in objective.named_parameters()}


@pytest.mark.parametrize("micro_batch_size", [1, 7, 32, 95])
@pytest.mark.parametrize("options", [{}, {"prefix_weight": 0.5}, {"projection": False, "temperature": 0.5}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_simcit_has_the_gradients_of_the_whole_batch_by_the_same_noise(micro_batch_size, options, dtype, tolerance):
    loss, expected = gradients(None, dtype, **options)
    found_loss, found = gradients(micro_batch_size, dtype, **options)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys() and all(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < tolerance * gradient.abs().max(), name


def test_other_noise_is_another_gradient():
    """So that equality above says something of the noise."""
    one, other = (gradients(7, seed=seed)[1]["quantizer.codebooks.0"] for seed in (1, 2))
    assert (one - other).abs().max() > 1e-2 * one.abs().max()


@pytest.mark.parametrize("part_size", [1, 4, 10])
def test_contrast_in_parts(part_size):
    anchors, targets = points(10, 6).view(10, 1, 6).repeat(1, 2, 1), points(10, 12, seed=1).view(10, 2, 6)
    known = torch.rand(10, 2, generator=torch.Generator().manual_seed(0)) > 0.3
    arguments = anchors, targets, known, targets.flatten(1), targets.unbind(1), 0.2
    torch.testing.assert_close(nt_xent(*arguments, part_size), nt_xent(*arguments))


def test_training_in_parts_gives_the_codes_of_the_whole():
    given = catalog_of(200), views_of(one=clusters(200, 8, 10), two=clusters(200, 6, 10))
    options = {"num_levels": 2, "codebook_size": 8, "encoder_layers": [32], "latent_dim": 16, "batch_size": 64}
    books = [
        books_of(SimCIT(**options, device="cpu", max_epochs=2, micro_batch_size=size).fit(*given))
        for size in (None, 20)
    ]
    for whole, parts in zip(*books, strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
