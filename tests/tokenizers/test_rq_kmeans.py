"""RQ-KMeans agrees with brute force, its mathematics with scikit-learn; both repeat themselves and refuse bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.cluster import KMeans

from llmrec.tokenizers.rq_kmeans import RQKMeans
from llmrec.tokenizers.shared import kmeans as residual
from llmrec.tokenizers.shared.balanced import sinkhorn
from llmrec.tokenizers.shared.kmeans import kmeans, nearest, squared_distances
from llmrec.views import ItemViews, View
from tests.support.clustered import books_of, catalog_of, points, rebuilt_cosine


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views_of(*vectors: np.ndarray | torch.Tensor) -> ItemViews:
    views = {}
    for i, block in enumerate(vectors):
        block = np.array(block, np.float32)
        views[f"view{i}"] = View(block, ~block.any(axis=1))
    return ItemViews(views)


def tokenizer_of(**settings) -> RQKMeans:
    return RQKMeans(**{"num_levels": 3, "codebook_size": 16, "device": "cpu", **settings})


def test_nearest_equals_brute_force_in_any_chunking(monkeypatch):
    x, codebook = points(50, 5), points(7, 5, seed=1)
    distances = (x[:, None] - codebook[None]).square().sum(2)  # (50, 7)
    torch.testing.assert_close(squared_distances(x, codebook), distances)
    monkeypatch.setattr(residual, "CHUNK_BYTES", 3 * 4 * 7)  # three points at a time
    codes, smallest = nearest(x, codebook)
    assert torch.equal(codes, distances.argmin(1))
    torch.testing.assert_close(smallest, distances.amin(1))


def test_kmeans_finds_planted_clusters():
    centres = 20 * torch.eye(8)
    member = torch.arange(400) % 8
    codebook = kmeans(centres[member] + 0.1 * points(400, 8), 8, 25, seeded())
    codes, distances = nearest(centres, codebook)
    assert codes.unique().numel() == 8
    assert distances.max() < 0.05


def test_kmeans_inertia_is_as_good_as_sklearn():
    x = points(1500, 8)
    ours = float(nearest(x, kmeans(x, 32, 25, seeded()))[1].sum())
    theirs = KMeans(32, n_init=1, max_iter=25, random_state=0).fit(x.numpy()).inertia_
    assert ours < 1.03 * theirs


def test_empty_code_restarts_at_the_farthest_point():
    x = torch.tensor([[0.0], [0.1], [5.0], [9.0]])
    codebook = torch.tensor([[0.05], [100.0], [200.0]])
    codes, distances = nearest(x, codebook)
    residual._restart_empty(codebook, torch.bincount(codes, minlength=3), x, distances)
    assert codebook.flatten().tolist() == pytest.approx([0.05, 9.0, 5.0])


def test_kmeans_with_fewer_distinct_points_than_codes_leaves_codes_unused():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(5, 1)
    codes, distances = nearest(x, kmeans(x, 4, 10, seeded()))
    assert codes.unique().numel() == 2 and distances.max() == 0


def test_sinkhorn_uses_nine_codes_in_ten_where_argmin_does_not():
    cost = squared_distances(points(64, 16), points(64, 16, seed=1))[None]
    assert sinkhorn(cost).argmax(2).unique().numel() >= 0.9 * 64
    assert cost.argmin(2).unique().numel() < 0.75 * 64


def test_sinkhorn_equals_lc_rec_in_probabilities():
    """The released code's loop (float64, exp domain), which does not overflow at this epsilon."""
    cost = squared_distances(points(10, 4), points(6, 4, seed=1)).double()
    middle = (cost.max() + cost.min()) / 2
    q = torch.exp(-(cost - middle) / (cost.max() - middle + 1e-5) / 0.003)
    q = q / q.sum()
    for _ in range(50):
        q = q / q.sum(1, keepdim=True) / 10
        q = q / q.sum(0, keepdim=True) / 6
    torch.testing.assert_close(sinkhorn(cost[None])[0].exp(), q)


def test_groups_of_sinkhorn_do_not_influence_each_other():
    cost = torch.stack([squared_distances(points(4, 3, s), points(8, 3, s + 9)) for s in range(3)])
    alone = torch.cat([sinkhorn(group[None]) for group in cost])
    assert torch.allclose(sinkhorn(cost), alone)


def test_codes_are_nearest_level_after_level_by_brute_force():
    vectors = torch.nn.functional.normalize(points(600, 12), dim=1)
    tokenizer = tokenizer_of().fit(catalog_of(600), views_of(vectors))
    left = tokenizer.encode(catalog_of(600), views_of(vectors)).vectors(np.arange(600)).double()
    codes = []
    for book in books_of(tokenizer):
        codes.append((left[:, None] - book.double()).square().sum(2).argmin(1))
        left = left - book.double()[codes[-1]]
    found = tokenizer.encode(catalog_of(600), views_of(vectors)).codes
    np.testing.assert_array_equal(found, torch.stack(codes, 1).numpy())


def test_last_level_cost_and_reconstruction_agree_with_the_codes():
    views, catalog = views_of(points(300, 6)), catalog_of(300)
    tokenizer = tokenizer_of()
    encoded = tokenizer.fit(catalog, views).encode(catalog, views)
    rows = np.array([5, 0, 299])
    assert encoded.codes.shape == (300, 3) and encoded.codes.dtype == np.int64
    assert encoded.last_level_cost(rows).argmin(1).tolist() == encoded.codes[rows, 2].tolist()
    rebuilt = sum(book[encoded.codes[:, level]] for level, book in enumerate(books_of(tokenizer)))
    cosine = torch.cosine_similarity(torch.from_numpy(views["view0"].vectors), rebuilt).mean()
    assert rebuilt_cosine(encoded) == pytest.approx(float(cosine), abs=1e-5)


def test_law_12_same_seed_gives_the_same_codebooks_bit_by_bit():
    views, catalog = views_of(points(400, 6)), catalog_of(400)
    first, second, other = (tokenizer_of(seed=seed).fit(catalog, views) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(books_of(first), books_of(second), strict=True))
    assert not torch.equal(books_of(first)[0], books_of(other)[0])
    np.testing.assert_array_equal(first.encode(catalog, views).codes, second.encode(catalog, views).codes)


def test_views_count_by_weight_not_by_length():
    """Two views cluster the items differently; the heavier one decides, though the other has longer vectors."""
    by_parity = torch.eye(2)[torch.arange(40) % 2]
    by_half = 1000 * torch.eye(2)[torch.arange(40) // 20]
    views, catalog = views_of(by_parity + 0.01 * points(40, 2), by_half), catalog_of(40)
    for heavy, expected in (("view0", torch.arange(40) % 2), ("view1", torch.arange(40) // 20)):
        weights = [1.0 if name == heavy else 0.1 for name in views]
        tokenizer = tokenizer_of(num_levels=1, codebook_size=2, view_weights=weights).fit(catalog, views)
        codes = tokenizer.encode(catalog, views).codes[:, 0]
        assert (codes == codes[0]).tolist() == (expected == 0).tolist()


def test_items_without_any_view_do_not_shape_codebooks_and_share_a_sid():
    vectors = points(200, 5).numpy() + 3
    padded = np.concatenate([vectors, np.zeros((7, 5))])
    with_unknown = tokenizer_of().fit(catalog_of(207), views_of(padded))
    without = tokenizer_of().fit(catalog_of(200), views_of(vectors))
    assert all(torch.equal(a, b) for a, b in zip(books_of(with_unknown), books_of(without), strict=True))
    codes = with_unknown.encode(catalog_of(207), views_of(padded)).codes
    assert len(np.unique(codes[200:], axis=0)) == 1
    assert codes[200, 0] == int(books_of(without)[0].square().sum(1).argmin())


def test_save_and_load_encode_alike(tmp_path):
    views, catalog = views_of(points(100, 4), points(100, 2, seed=3)), catalog_of(100)
    tokenizer = tokenizer_of(view_weights=[1, 0.5]).fit(catalog, views)
    tokenizer.save_pretrained(tmp_path)
    assert load_file(tmp_path / "codebooks.safetensors")["codebook_2"].shape == (16, 6)
    loaded = RQKMeans.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.encode(catalog, views).codes, tokenizer.encode(catalog, views).codes)

    with pytest.raises(ValueError, match=r"fitted on the views .*'view1': 2.* was given \{'view0': 4\}"):
        loaded.encode(catalog, views_of(points(100, 4)))
    settings = json.loads((tmp_path / "item_tokenizer.json").read_text())
    settings["options"]["num_levels"] = 2
    (tmp_path / "item_tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"3 codebooks of \[16, 16, 16\] codes where \[16, 16\] belong"):
        RQKMeans.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no item_tokenizer"):
        RQKMeans.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((40, 3)), "all of the 40 item vectors are equal"),
        (np.eye(5)[np.arange(40) % 5], "5 distinct vectors.*Lower codebook_size to at most 5"),
        (np.eye(10), "10 items.*Lower codebook_size to at most 10"),
        (np.zeros((40, 3)), "no view has a vector for any item"),
    ],
)
def test_too_little_to_fill_a_codebook(vectors, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_of().fit(catalog_of(len(vectors)), views_of(vectors))


def test_views_of_another_catalogue_and_unfitted_tokenizers_are_refused():
    with pytest.raises(ValueError, match="has 30 rows but the catalogue has 31 items"):
        tokenizer_of().fit(catalog_of(31), views_of(points(30, 2)))
    with pytest.raises(ValueError, match="fit it first"):
        tokenizer_of().encode(catalog_of(30), views_of(points(30, 2)))


@pytest.mark.parametrize("balance", ["capacity", "onerec"])
def test_balanced_levels_use_every_code_equally_often(tmp_path, balance):
    """16 codes for 200 items: 12 or 13 each, at every level over the whole catalogue."""
    views, catalog = views_of(points(200, 6) ** 3), catalog_of(200)
    tokenizer = tokenizer_of(balance=balance).fit(catalog, views)
    encoded = tokenizer.encode(catalog, views)
    for codes in encoded.codes.T:
        assert set(np.bincount(codes, minlength=16)) == {12, 13}
    tokenizer.save_pretrained(tmp_path)
    loaded = RQKMeans.from_pretrained(tmp_path, device="cpu").encode(catalog, views)
    np.testing.assert_array_equal(loaded.codes, encoded.codes)
    again = tokenizer_of(balance=balance).fit(catalog, views).encode(catalog, views)
    np.testing.assert_array_equal(again.codes, encoded.codes)


def test_capacity_costs_less_than_codes_in_turn_and_more_than_no_balance():
    views, catalog = views_of(points(200, 6) ** 3), catalog_of(200)
    lost = {}
    for balance in ("none", "capacity", "onerec"):
        encoded = tokenizer_of(num_levels=1, balance=balance).fit(catalog, views).encode(catalog, views)
        rows = np.arange(200)
        lost[balance] = float((encoded.vectors(rows) - encoded.reconstruction(rows)).square().sum())
    assert lost["none"] < lost["capacity"] < lost["onerec"]


def test_balanced_items_keep_their_codes_beside_new_ones_and_costs_follow_the_codes():
    x = points(200, 6) ** 3
    tokenizer = tokenizer_of(balance="capacity").fit(catalog_of(200), views_of(x))
    encoded = tokenizer.encode(catalog_of(200), views_of(x))
    grown = tokenizer.encode(catalog_of(203), views_of(torch.cat([x, points(3, 6, seed=7)])))
    np.testing.assert_array_equal(grown.codes[:200], encoded.codes)
    first, second, third = (torch.from_numpy(codes) for codes in grown.codes.T)
    left = grown.vectors(np.arange(203)) - books_of(tokenizer)[0][first] - books_of(tokenizer)[1][second]
    torch.testing.assert_close(grown.last_level_cost(np.arange(203)), squared_distances(left, books_of(tokenizer)[2]))
    nearest_ones = nearest(left[200:], books_of(tokenizer)[2])[0]
    assert torch.equal(third[200:], nearest_ones)


@pytest.mark.gpu
def test_law_12_on_a_gpu():
    views, catalog = views_of(points(4000, 32)), catalog_of(4000)
    runs = [tokenizer_of(codebook_size=64, device="cuda").fit(catalog, views) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(books_of(runs[0]), books_of(runs[1]), strict=True))
