"""ETEGRec's tokenizer: distributions over codes by hand, where gradients go, and training on with an LLM."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.etegrec import EndToEnd, ETEGRec
from llmrec.tokenizers.shared.autoencoder import Autoencoder
from llmrec.tokenizers.shared.collapse import collapsed
from llmrec.tokenizers.shared.residual_quantizer import ResidualQuantizer
from tests.support.clustered import catalog_of, clusters, views_of

BOOKS = [torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])]


def by_hand(points: torch.Tensor) -> EndToEnd:
    """An identity for an encoder, and codebooks whose distances are whole numbers."""
    network, quantizer = Autoencoder(2, [], 2), ResidualQuantizer(2, 2, 2)
    network.encoder, network.decoder = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        for codebook, values in zip(quantizer.codebooks, BOOKS, strict=True):
            codebook.copy_(values)
    return EndToEnd(points, network, quantizer, 0).eval()


def fitted(num_items: int = 120, **options) -> tuple[ETEGRec, object, object]:
    small = {"num_levels": 3, "codebook_size": 8, "encoder_layers": [16], "latent_dim": 8, "max_epochs": 20}
    catalog, views = catalog_of(num_items), views_of(sasrec=clusters(num_items, 6, 12))
    return ETEGRec(**{**small, "device": "cpu", **options}).fit(catalog, views), catalog, views


def test_the_defaults_are_the_papers():
    tokenizer = ETEGRec()
    assert (tokenizer.encoder_layers, tokenizer.latent_dim) == ([512, 256], 128)
    assert (tokenizer.num_levels, tokenizer.codebook_size, tokenizer.commitment) == (3, 256, 0.25)
    assert (tokenizer.learning_rate, tokenizer.weight_decay, tokenizer.batch_size) == (1e-3, 1e-4, 1024)


def test_distributions_by_hand():
    """(3, 2) is 13 from code 0 and 5 from code 1; what (4, 0) leaves of it is (-1, 2), 2 and 10 from the second two."""
    assigned = by_hand(torch.tensor([[3.0, 2.0]])).assign(torch.tensor([[3.0, 2.0]]))
    assert [level.tolist() for level in assigned.logits] == [[[-13.0, -5.0]], [[-2.0, -10.0]]]
    assert assigned.quantized.codes.tolist() == [[1, 0]]
    assert assigned.reconstruction.tolist() == [[4.0, 1.0]]
    # |(3, 2) - (4, 0)|^2 = 5 and |(-1, 2) - (0, 1)|^2 = 2, averaged over two numbers and two levels, times 1.25.
    assert assigned.quantized.loss.item() == pytest.approx(1.25 * (5 / 2 + 2 / 2) / 2)


def test_each_side_follows_its_own_hard_codes():
    """A sequence near code 0 of the first level goes on from there, whatever the item beside it does."""
    tokenizer = by_hand(torch.zeros(1, 2))
    sequence = tokenizer.logits(torch.tensor([[1.0, 2.0]]))
    assert [level.tolist() for level in sequence] == [[[-5.0, -13.0]], [[-2.0, -10.0]]]
    forced = tokenizer.logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 0]]))
    assert forced[1].tolist() == [[-(9.0 + 1), -(9.0 + 9)]]


def test_the_gradient_of_a_level_reaches_the_latent_vector_and_its_own_codebook_alone():
    for level in range(2):
        tokenizer, latent = by_hand(torch.zeros(1, 2)), torch.tensor([[3.0, 2.0]], requires_grad=True)
        tokenizer.logits(latent)[level].softmax(1)[0, 0].backward()
        assert latent.grad.any()
        grads = [codebook.grad is not None and bool(codebook.grad.any()) for codebook in tokenizer.quantizer.codebooks]
        assert grads == [level == each for each in range(2)]


def test_the_reconstruction_passes_its_gradient_to_the_encoder():
    tokenizer, points = by_hand(torch.zeros(1, 2)), torch.tensor([[3.0, 2.0]], requires_grad=True)
    tokenizer.assign(points).reconstruction.sum().backward()
    assert points.grad.tolist() == [[1.0, 1.0]]


def test_it_is_trained_on_from_where_it_was_fitted():
    tokenizer, catalog, views = fitted()
    encoded = tokenizer.encode(catalog, views)
    rows = np.arange(120)
    module = tokenizer.end_to_end(catalog, views)
    np.testing.assert_array_equal(module.codes().numpy(), encoded.codes)
    assigned = module.assign(module.points)
    torch.testing.assert_close(assigned.reconstruction, encoded.reconstruction(rows))
    module.generator.manual_seed(0)
    torch.testing.assert_close(module.own_loss(module.points, assigned), module.loss(torch.arange(120)))


def test_training_on_leaves_the_fitted_one_and_the_random_state_alone(tmp_path):
    tokenizer, catalog, views = fitted()
    before, state = tokenizer.encode(catalog, views).codes, torch.get_rng_state()
    module = tokenizer.end_to_end(catalog, views)
    assert torch.equal(torch.get_rng_state(), state)
    module.requires_grad_(True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(-1.5)
    np.testing.assert_array_equal(tokenizer.encode(catalog, views).codes, before)

    tokenizer.take(module)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, "cpu").encode(catalog, views).codes
    np.testing.assert_array_equal(again, module.codes().numpy())
    assert (again != before).any()


def test_levels_that_have_collapsed_are_named():
    codes = np.stack([np.arange(100) % 50, np.zeros(100, np.int64), np.arange(100) % 5], axis=1)
    assert collapsed(codes, [50, 50, 50]) == "level 1 uses 1 of 50 codes"
    assert collapsed(codes[:, [0, 2]], [50, 50]) == ""
