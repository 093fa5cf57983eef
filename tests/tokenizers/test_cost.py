"""CoST: its contrastive loss and gradient by hand, what it does to items, and its options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmrec.tokenizers.cost import CoST, contrastive_loss
from tests.support.clustered import books_of, catalog_of, clusters, points, views_of


def cost(**options) -> CoST:
    small = {"num_levels": 2, "codebook_size": 16, "encoder_layers": [32], "latent_dim": 8, "batch_size": 128}
    return CoST(**{**small, "device": "cpu", "max_epochs": 30, **options})


def fitted(tokenizer, vectors):
    views, catalog = views_of(text=vectors), catalog_of(len(vectors))
    return tokenizer.fit(catalog, views), tokenizer.encode(catalog, views)


def test_loss_and_gradient_of_two_points_by_hand():
    points_BD = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    rebuilt = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = contrastive_loss(points_BD, rebuilt, temperature=0.5)
    # Cosines are 1 with the own and 0 with the other: logits 2 and 0.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    loss.backward()
    # The wrong candidate has chance q = 1 / (1 + e^2). Moving reconstruction j towards point i changes the cosine by
    # 1 / length; over two rows and the temperature: q / 2 / .5 / length.
    q = 1 / (1 + math.exp(2))
    torch.testing.assert_close(rebuilt.grad, torch.tensor([[0.0, q / 2], [q, 0.0]]))


def test_all_but_equal_items_are_no_negatives_of_each_other():
    points_BD = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    loss = contrastive_loss(points_BD, points_BD, temperature=1)
    own, other = 1.0, 0.01 / math.sqrt(1.0001)
    first = -own + math.log(math.exp(own) + math.exp(0))
    second = -own + math.log(math.exp(own) + math.exp(other))
    third = -own + math.log(math.exp(own) + math.exp(0) + math.exp(other))
    assert loss.item() == pytest.approx((first + second + third) / 3, abs=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reconstruction", [True, False])
def test_the_loss_falls_and_codes_tell_clusters_apart(shared, reconstruction):
    vectors = clusters(640, 12, 16, spread=0.1)
    options = {"shared_codebook": shared, "reconstruction": reconstruction, "learning_rate": 3e-3, "codebook_size": 32}
    start, _ = fitted(cost(max_epochs=0, **options), vectors)
    tokenizer, encoded = fitted(cost(**options), vectors)
    losses = []
    for fitted_tokenizer in (start, tokenizer):
        quantizer = fitted_tokenizer.coder.quantizer
        rebuilt = quantizer.rebuild(quantizer.codes(vectors))
        losses.append(contrastive_loss(vectors[:32], rebuilt[:32], 0.1).item())
    assert losses[1] < 0.5 * losses[0]
    prefixes = {tuple(row) for row in encoded.codes[:, :1]}
    assert len(prefixes) >= 8
    same = [torch.equal(*books_of(tokenizer))]
    assert same == [shared]


def test_the_objective_is_the_contrast_and_with_reconstruction_both():
    vectors, rows = clusters(64, 6, 8), torch.arange(64)
    losses = {}
    for options in ({"reconstruction": False}, {"reconstruction": True}, {"reconstruction": True, "alpha": 1e-9}):
        learner = cost(**options).objective(vectors, torch.Generator().manual_seed(0)).eval()
        losses[len(losses)] = learner.validation_loss(rows).item()
    rebuilt = learner.network.decode(learner.quantizer(learner.network.encode(vectors)).vector)
    assert losses[0] == pytest.approx(0.1 * contrastive_loss(vectors, rebuilt, 0.1).item(), rel=1e-5)
    assert losses[1] == pytest.approx(losses[0] + losses[2], rel=1e-5)


def test_every_weight_gets_a_gradient():
    learner = cost(codebook_size=2).objective(clusters(64, 6, 8), torch.Generator().manual_seed(0))
    learner.loss(torch.arange(64)).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in learner.parameters())


@pytest.mark.parametrize("shared", [True, False])
def test_save_load_and_law_12(shared, tmp_path):
    vectors = clusters(300, 8, 20)
    runs = [fitted(cost(max_epochs=3, shared_codebook=shared), vectors) for _ in range(2)]
    np.testing.assert_array_equal(runs[0][1].codes, runs[1][1].codes)
    runs[0][0].save_pretrained(tmp_path)
    loaded = CoST.from_pretrained(tmp_path, device="cpu").encode(catalog_of(300), views_of(text=vectors))
    np.testing.assert_array_equal(loaded.codes, runs[0][1].codes)


def test_twelve_items():
    assert fitted(cost(codebook_size=12, max_epochs=20), points(12, 4))[1].codes.shape == (12, 2)
