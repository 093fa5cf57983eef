"""OPQ loses as little as k-means in its parts, its whitening is a whitening, and its levels are parts of the vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from llmrec.tokenizers import opq
from llmrec.tokenizers.opq import OPQ, learn_rotation, whitening
from llmrec.tokenizers.shared.kmeans import squared_distances
from tests.support.clustered import catalog_of, points, views_of


def tokenizer_of(**settings) -> OPQ:
    return OPQ(**{"codebook_size": 16, "pca_dim": None, "device": "cpu", **settings})


def correlated(num_points: int, dim: int) -> torch.Tensor:
    return points(num_points, dim) @ points(dim, dim, seed=1)


def distortion(tokenizer: OPQ, x: torch.Tensor) -> float:
    codebooks = tokenizer.codebooks(x)
    return float((x - codebooks.rebuild(codebooks.codes(x))).square().sum(1).mean())


def test_the_rotation_pays_and_plain_parts_cost_what_scikit_learn_finds():
    x = correlated(1500, 16)
    plain, rotated = (distortion(tokenizer_of(rotations=count), x) for count in (0, 50))
    parts = (x - x.mean(0)).numpy().reshape(1500, 4, 4)
    theirs = sum(KMeans(16, n_init=3, random_state=0).fit(part).inertia_ for part in parts.transpose(1, 0, 2)) / 1500
    assert plain == pytest.approx(theirs, rel=0.03)
    assert rotated < 0.8 * plain


def test_a_learned_rotation_is_orthogonal():
    turn, books = learn_rotation(correlated(300, 8), 2, 16, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turn @ turn.T, torch.eye(8), atol=1e-5, rtol=0)
    assert [tuple(book.shape) for book in books] == [(16, 4), (16, 4)]


def test_whitening_by_hand():
    """Variances 4, 1 and 0 along the axes: two directions, in this order, each scaled to variance 1."""
    x = torch.tensor([[2.0, 1, 5], [2, -1, 5], [-2, 1, 5], [-2, -1, 5]]) + torch.tensor([3.0, 0, 0])
    mean, into, back = whitening(x, 3)
    assert mean.tolist() == [3, 0, 5]
    torch.testing.assert_close(into.abs(), torch.tensor([[0.5, 0], [0, 1], [0, 0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close((x - mean) @ into @ back + mean, x)


def test_whitened_covariance_is_the_identity():
    x = correlated(500, 12)
    mean, into, _ = whitening(x, 6)
    torch.testing.assert_close(torch.cov(((x - mean) @ into).T, correction=0), torch.eye(6), atol=1e-4, rtol=0)


def test_without_rotation_each_level_is_a_kmeans_of_its_own_dimensions():
    """Two views that vary each in its own half: the first code follows the first view alone, the second the other."""
    first, second = torch.arange(60) % 2, torch.arange(60) // 30
    x = torch.cat([torch.eye(2)[first], torch.eye(2)[second]], dim=1) + 0.01 * points(60, 4)
    tokenizer = tokenizer_of(num_levels=2, codebook_size=2, rotations=0)
    codes = tokenizer.codebooks(x).codes(x)
    for level, truth in enumerate((first, second)):
        assert (codes[:, level] == codes[0, level]).tolist() == (truth == 0).tolist()


def test_last_level_cost_is_what_another_last_code_costs_in_the_whole_vector():
    """A rotation keeps lengths: the cost less its minimum is the same in the vectors' own space."""
    x, catalog = correlated(200, 8), catalog_of(200)
    tokenizer = tokenizer_of(num_levels=2, rotations=5)
    encoded = tokenizer.fit(catalog, views_of(text=x)).encode(catalog, views_of(text=x))
    rows = np.array([3, 150])
    assert encoded.last_level_cost(rows).argmin(1).tolist() == encoded.codes[rows, 1].tolist()
    tried = torch.from_numpy(encoded.codes[rows]).repeat_interleave(16, 0)
    tried[:, 1] = torch.arange(16).repeat(2)
    whole = squared_distances(encoded.vectors(rows), tokenizer.coder.quantizer.rebuild(tried))[[0, 1]].view(2, 2, 16)[
        [0, 1], [0, 1]
    ]
    cost = encoded.last_level_cost(rows)
    torch.testing.assert_close(
        cost - cost.amin(1, keepdim=True), whole - whole.amin(1, keepdim=True), atol=1e-4, rtol=0
    )


def test_save_and_load_encode_alike_and_the_same_seed_gives_the_same_codes(tmp_path):
    views, catalog = views_of(one=points(100, 6), two=points(100, 5, seed=3)), catalog_of(100)
    first, second, other = (tokenizer_of(pca_dim=8, seed=seed).fit(catalog, views) for seed in (1, 1, 2))
    codes = first.encode(catalog, views).codes
    assert codes.shape == (100, 4) and codes.dtype == np.int64
    np.testing.assert_array_equal(codes, second.encode(catalog, views).codes)
    assert not np.array_equal(codes, other.encode(catalog, views).codes)
    first.save_pretrained(tmp_path)
    np.testing.assert_array_equal(codes, OPQ.from_pretrained(tmp_path, "cpu").encode(catalog, views).codes)


def test_fewer_dimensions_than_asked_for_are_said(monkeypatch):
    said = []
    monkeypatch.setattr(opq, "say", said.append)
    tokenizer = tokenizer_of(num_levels=2, pca_dim=8, rotations=1)
    codebooks = tokenizer.codebooks(points(60, 3) @ points(3, 10, seed=1))  # 10 dimensions, which vary in 3
    assert said == ["The vectors vary in 3 dimensions; opq keeps 2, not 8."]
    assert codebooks.into_DE.shape == (10, 2)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"pca_dim is 10 for 4 levels.*give a multiple of num_levels"):
        tokenizer_of(pca_dim=10)
    with pytest.raises(ValueError, match=r"6 dimensions cannot be cut into 4 equal parts. Set pca_dim"):
        tokenizer_of().codebooks(points(40, 6))
    with pytest.raises(ValueError, match=r"vary in 3 dimensions cannot be cut into 4 parts. Lower num_levels"):
        tokenizer_of(pca_dim=4).codebooks(points(40, 3))
    with pytest.raises(ValueError, match=r"10 distinct vectors.*Lower codebook_size to at most 10"):
        tokenizer_of().fit(catalog_of(40), views_of(text=torch.eye(12)[torch.arange(40) % 10]))
    with pytest.raises(ValueError, match="fit it first"):
        tokenizer_of().encode(catalog_of(30), views_of(text=points(30, 8)))
