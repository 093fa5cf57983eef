"""RQ-VAE and RQ-KMeans+: codes of their codebooks, use of the codebooks, gradients, files, seeds and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from llmrec.tokenizers.rq_kmeans import RQKMeans
from llmrec.tokenizers.rq_kmeans_plus import RQKMeansPlus
from llmrec.tokenizers.rq_vae import RQVAE
from llmrec.tokenizers.shared.autoencoder import Autoencoder, mlp
from tests.support.clustered import books_of, catalog_of, clusters, points, rebuilt_cosine, views_of

SMALL = {"num_levels": 3, "codebook_size": 16, "encoder_layers": [32], "batch_size": 128, "device": "cpu"}


def rq_vae(**options) -> RQVAE:
    return RQVAE(**{**SMALL, "latent_dim": 8, "max_epochs": 30, **options})


def rq_kmeans_plus(**options) -> RQKMeansPlus:
    return RQKMeansPlus(**{**SMALL, "max_epochs": 30, **options})


def fitted(tokenizer, *blocks):
    views = views_of(**{f"view{i}": block for i, block in enumerate(blocks)})
    catalog = catalog_of(len(blocks[0]))
    return tokenizer.fit(catalog, views), tokenizer.encode(catalog, views)


def test_with_an_identity_encoder_codes_are_those_of_the_codebooks():
    vectors = torch.nn.functional.normalize(points(600, 12), dim=1)
    tokenizer, _ = fitted(rq_vae(max_epochs=0, latent_dim=12, encoder_layers=[]), vectors)
    quantizer = tokenizer.coder.quantizer
    quantizer.network.encoder = torch.nn.Identity()
    quantizer.network.mean.zero_()
    quantizer.network.scale.fill_(1)
    plain, expected = fitted(RQKMeans(num_levels=3, codebook_size=16, device="cpu"), vectors)
    quantizer.codebooks = plain.coder.quantizer
    codes = tokenizer.encode(catalog_of(600), views_of(view0=vectors)).codes
    np.testing.assert_array_equal(codes, expected.codes)


def test_level_0_uses_four_fifths_of_its_codes_and_training_rebuilds_better_than_the_start():
    vectors = clusters(1500, 24, 40)
    start = rebuilt_cosine(fitted(rq_vae(max_epochs=0, codebook_size=32), vectors)[1])
    _, encoded = fitted(rq_vae(codebook_size=32, learning_rate=3e-3), vectors)
    assert len(np.unique(encoded.codes[:, 0])) >= 0.8 * 32
    assert rebuilt_cosine(encoded) > max(0.85, start)


def test_aliases_are_those_of_late_weights_and_the_first_is_the_tokenizer_without_them(tmp_path):
    vectors = clusters(600, 12, 20, spread=0.5)
    options = {"max_epochs": 200, "learning_rate": 3e-3, "seed": 3}
    plain, alone = fitted(rq_vae(**options), vectors)
    tokenizer, _ = fitted(rq_vae(aliases=3, **options), vectors)
    each = tokenizer.encode_aliases(catalog_of(600), views_of(view0=vectors))
    assert len(each) == tokenizer.num_aliases == 3
    np.testing.assert_array_equal(each[0].codes, alone.codes)  # off and on: the same training
    kept = [(each[0].codes[:, 0] == other.codes[:, 0]).mean() for other in each[1:]]
    assert 0.5 < kept[1] <= kept[0] < 1  # near in training is near in codes, and not the same
    assert plain.num_aliases == 1 and not plain.other_coders
    tokenizer.save_pretrained(tmp_path)
    again = RQVAE.from_pretrained(tmp_path, "cpu").encode_aliases(catalog_of(600), views_of(view0=vectors))
    assert [one.codes.tolist() for one in again] == [one.codes.tolist() for one in each]


def test_more_aliases_than_readings_are_refused():
    with pytest.raises(ValueError, match=r"aliases is 9, but the held-out loss was read 1 times up to its best, once"):
        fitted(rq_vae(aliases=9, max_epochs=2), clusters(300, 6, 10))


def test_every_weight_gets_a_gradient_and_the_standardisation_none():
    vectors = clusters(64, 6, 8)
    learner = rq_vae(codebook_size=2).objective(vectors, torch.Generator().manual_seed(0))
    learner.loss(torch.arange(64)).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in learner.parameters())
    assert {name for name, _ in learner.network.named_buffers()} == {"mean", "scale"}


def test_the_reconstruction_loss_is_the_share_of_variance_that_is_lost():
    vectors = 7 * points(200, 5) + 3
    learner = rq_vae().objective(vectors, torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(learner.network.decoder[-1].weight)  # whatever the codes, the mean is rebuilt
    assert learner.validation_loss(torch.arange(200)).item() == pytest.approx(1, abs=1e-5)


def test_the_network_is_mirrored_and_linear_at_its_ends():
    network = Autoencoder(10, [8, 6], 4)
    shapes = [tuple(layer.weight.shape) for layer in [*network.encoder, *network.decoder] if hasattr(layer, "weight")]
    assert shapes == [(8, 10), (6, 8), (4, 6), (6, 4), (8, 6), (10, 8)]
    assert (network.encode(points(50, 10)) < 0).any() and len(mlp([3, 2])) == 1


def test_weights_of_views_and_items_without_any_view():
    first, second = clusters(300, 6, 10), points(300, 4, seed=5)
    first[7] = second[7] = first[9] = 0
    _, encoded = fitted(rq_vae(max_epochs=2, view_weights=[1, 0.5]), first, second)
    rows = np.array([7, 9, 11])
    assert encoded.vectors(rows).norm(dim=1).tolist() == pytest.approx([0, 0.5, 1.25**0.5])
    assert encoded.reconstruction(rows).shape == (3, 10)
    assert encoded.last_level_cost(rows).argmin(1).tolist() == encoded.codes[rows, 2].tolist()


@pytest.mark.parametrize("make", [rq_vae, rq_kmeans_plus])
def test_save_and_load_encode_alike(make, tmp_path):
    blocks = clusters(200, 6, 12), points(200, 3, seed=5)
    tokenizer, encoded = fitted(make(max_epochs=3, num_levels=11), *blocks)  # 11: codebook_10 is not after _1
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path, device="cpu")
    again = loaded.encode(catalog_of(200), views_of(view0=blocks[0], view1=blocks[1]))
    np.testing.assert_array_equal(again.codes, encoded.codes)
    rows = np.arange(200)
    assert torch.equal(again.reconstruction(rows), encoded.reconstruction(rows))

    settings = json.loads((tmp_path / "item_tokenizer.json").read_text())
    settings["options"]["encoder_layers"] = [31]
    (tmp_path / "item_tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="holds no whole tokenizer: its network does not fit the options"):
        type(tokenizer).from_pretrained(tmp_path)


@pytest.mark.parametrize("make", [rq_vae, rq_kmeans_plus])
def test_law_12_same_seed_same_codes_bit_by_bit(make):
    vectors = clusters(400, 8, 20)
    (first, a), (second, b), (third, _) = (fitted(make(max_epochs=4, seed=seed), vectors) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.codes, b.codes)
    assert all(torch.equal(x, y) for x, y in zip(books_of(first), books_of(second), strict=True))
    assert not torch.equal(books_of(first)[0], books_of(third)[0])


@pytest.mark.parametrize("make", [rq_vae, rq_kmeans_plus])
def test_a_catalogue_of_twelve_items(make):
    """Less than a batch, and nothing to hold out."""
    _, encoded = fitted(make(codebook_size=4, max_epochs=150, learning_rate=5e-3), points(12, 5))
    assert encoded.codes.shape == (12, 3) and len(np.unique(encoded.codes, axis=0)) >= 10
    assert rebuilt_cosine(encoded) > 0.9


def test_rq_kmeans_plus_starts_with_the_codes_of_rq_kmeans_exactly():
    vectors = points(500, 10)
    plain, encoded = fitted(RQKMeans(num_levels=3, codebook_size=16, seed=4, device="cpu"), vectors)
    start, same = fitted(rq_kmeans_plus(max_epochs=0, seed=4), vectors)
    np.testing.assert_array_equal(same.codes, encoded.codes)
    scale = start.coder.quantizer.network.scale
    assert scale.log2() % 1 == 0 and 0.7 < (encoded.vectors(np.arange(500)) * scale).square().mean().sqrt() < 1.42
    assert all(torch.equal(a / scale, b) for a, b in zip(books_of(start), books_of(plain), strict=True))


def test_rq_kmeans_plus_learns_to_rebuild_and_moves_its_codes():
    vectors = clusters(1500, 12, 40)
    _, before = fitted(rq_kmeans_plus(max_epochs=0), vectors)
    tokenizer, after = fitted(rq_kmeans_plus(max_epochs=60, learning_rate=2e-3), vectors)
    assert rebuilt_cosine(after) > 0.9
    assert not np.array_equal(before.codes, after.codes) and tokenizer.coder.quantizer.network.encoder[-1].weight.any()


@pytest.mark.parametrize("make", [rq_vae, rq_kmeans_plus])
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((40, 3)), "all of the 40 item vectors are equal"),
        (np.eye(5)[np.arange(40) % 5], "5 distinct vectors.*Lower codebook_size to at most 5"),
        (np.zeros((40, 3)), "no view has a vector for any item"),
    ],
)
def test_too_little_to_fill_a_codebook(make, vectors, message):
    with pytest.raises(ValueError, match=message):
        fitted(make(), vectors)


def test_bad_options_and_unfitted_tokenizers_are_refused():
    with pytest.raises(ValueError, match=r"encoder_layers is \[8, 0\]; at least 1"):
        rq_vae(encoder_layers=[8, 0])
    with pytest.raises(ValueError, match="ste is 'both'; choose from per_level, sum"):
        rq_vae(ste="both")
    with pytest.raises(ValueError, match="fit it first"):
        rq_vae().encode(catalog_of(30), views_of(view0=points(30, 2)))


@pytest.mark.gpu
@pytest.mark.parametrize("made", [rq_vae, rq_kmeans_plus])
def test_law_12_on_a_gpu(made):
    vectors = clusters(4000, 32, 100)
    runs = [fitted(made(codebook_size=64, device="cuda"), vectors) for _ in range(2)]
    np.testing.assert_array_equal(runs[0][1].codes, runs[1][1].codes)
    assert all(torch.equal(a, b) for a, b in zip(books_of(runs[0][0]), books_of(runs[1][0]), strict=True))
