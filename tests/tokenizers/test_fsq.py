"""FSQ rounds as its paper says, its grids are residual codebooks, and training rebuilds the vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.tokenizers.fsq import FSQ, bounded, grids
from tests.support.clustered import catalog_of, clusters, points, rebuilt_cosine, views_of


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """A small network each."""


def tokenizer_of(**options) -> FSQ:
    small = {"num_levels": 2, "sizes": [4, 3], "encoder_layers": [32], "max_epochs": 60}
    return FSQ(**{**small, "batch_size": 64, "device": "cpu", **options})


@pytest.mark.parametrize(
    ("size", "values"), [(2, [-1, 0]), (3, [-1, 0, 1]), (4, [-2, -1, 0, 1]), (5, [-2, -1, 0, 1, 2])]
)
def test_rounding_gives_as_many_values_as_the_size_says_and_zero_stays_zero(size, values):
    line = torch.linspace(-20, 20, 4001)[:, None]
    bounds = bounded(line, torch.tensor([size]))
    assert bounds.round().unique().tolist() == values
    assert bounded(torch.zeros(1, 1), torch.tensor([size])).abs() < 1e-6
    assert (bounds.diff(dim=0) >= 0).all()


def test_grids_by_hand():
    """Sizes 2 and 3: values -1 and 0; -1, 0 and 1. Two levels: zeros in the dimensions of the other."""
    first, second = grids([2, 3], 2, torch.device("cpu"))
    assert first.tolist() == [
        [-1, -1, 0, 0], [-1, 0, 0, 0], [-1, 1, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0],
    ]  # fmt: skip
    assert torch.equal(second, first.roll(2, dims=1))


def test_codes_of_the_residual_descent_are_the_rounded_latent_numbers():
    x = torch.nn.functional.normalize(clusters(200, 6, 12), dim=1)
    tokenizer = tokenizer_of(max_epochs=5).fit(catalog_of(200), views_of(text=x))
    quantizer = tokenizer.coder.quantizer
    latent = quantizer.network.encode(x)
    rounded = (latent * torch.tensor([2, 1, 2, 1])).round()  # values -2 … 1 and -1 … 1
    places = (rounded + torch.tensor([2, 1, 2, 1])).long()
    codes = places.view(200, 2, 2) @ torch.tensor([3, 1])
    assert torch.equal(quantizer.codes(x), codes)
    rebuilt = quantizer.network.decode(rounded / torch.tensor([2, 1, 2, 1]))
    torch.testing.assert_close(quantizer.rebuild(codes), rebuilt)


def test_training_rebuilds_the_vectors_and_tells_clusters_apart():
    x, catalog = clusters(384, 8, 12, spread=0.05), catalog_of(384)
    views = views_of(text=x)
    untrained, trained = (
        tokenizer_of(max_epochs=epochs, learning_rate=5e-3).fit(catalog, views).encode(catalog, views)
        for epochs in (0, 60)
    )
    assert rebuilt_cosine(trained) > 0.9 > rebuilt_cosine(untrained)
    codes = trained.codes[:12]
    assert len(np.unique(codes, axis=0)) >= 10


def test_last_level_cost_is_least_at_the_code():
    x, catalog = clusters(200, 6, 12), catalog_of(200)
    encoded = tokenizer_of(max_epochs=5).fit(catalog, views_of(text=x)).encode(catalog, views_of(text=x))
    rows = np.arange(200)
    assert encoded.last_level_cost(rows).argmin(1).tolist() == encoded.codes[:, 1].tolist()


def test_save_and_load_encode_alike_and_the_same_seed_gives_the_same_codes(tmp_path):
    views, catalog = views_of(one=points(120, 4), two=points(120, 3, seed=3)), catalog_of(120)
    first, second, other = (tokenizer_of(seed=seed, max_epochs=5).fit(catalog, views) for seed in (1, 1, 2))
    codes = first.encode(catalog, views).codes
    np.testing.assert_array_equal(codes, second.encode(catalog, views).codes)
    assert not np.array_equal(codes, other.encode(catalog, views).codes)
    first.save_pretrained(tmp_path)
    np.testing.assert_array_equal(codes, FSQ.from_pretrained(tmp_path, "cpu").encode(catalog, views).codes)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"encoder_layers is .0.; at least 1.*sizes is .12, 1.; at least 2 is needed"):
        tokenizer_of(sizes=[12, 1], encoder_layers=[0])
    with pytest.raises(ValueError, match=r"sizes is \[\]; give numbers above 1"):
        tokenizer_of(sizes=[])
    with pytest.raises(ValueError, match="all of the 40 item vectors are equal"):
        tokenizer_of().fit(catalog_of(40), views_of(text=np.ones((40, 3))))
    with pytest.raises(ValueError, match="fit it first"):
        tokenizer_of().encode(catalog_of(30), views_of(text=points(30, 8)))
