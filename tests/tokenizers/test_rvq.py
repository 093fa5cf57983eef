"""R-VQ by hand: what is learned on four points, codes under given codebooks, files, seeds and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.tokenizers.rvq import RVQ
from llmrec.tokenizers.shared.kmeans import kmeans, nearest
from tests.support.clustered import books_of, catalog_of, clusters, points, rebuilt_cosine, views_of

FOUR = torch.tensor([[3.0, 0.0], [0.0, 2.0], [4.0, 3.0], [3.0, 4.0]])


def rvq(**options) -> RVQ:
    return RVQ(
        **{"num_levels": 2, "codebook_size": 16, "batch_size": 128, "device": "cpu", "max_epochs": 30, **options}
    )


def fitted(tokenizer, vectors):
    views, catalog = views_of(text=vectors), catalog_of(len(vectors))
    return tokenizer.fit(catalog, views), tokenizer.encode(catalog, views)


def test_four_points_by_hand():
    tokenizer, encoded = fitted(rvq(codebook_size=2, max_epochs=400, learning_rate=1e-2, weight_decay=0), FOUR)
    # At unit length: (1, 0), (0, 1), (.8, .6), (.6, .8). A code is the mean of its points: of 0 and 2, and of 1 and 3.
    own = encoded.codes[:, 0]
    assert own[0] == own[2] != own[1] == own[3]
    torch.testing.assert_close(books_of(tokenizer)[0][own[0]], torch.tensor([0.9, 0.3]), atol=2e-3, rtol=0)
    torch.testing.assert_close(books_of(tokenizer)[0][own[1]], torch.tensor([0.3, 0.9]), atol=2e-3, rtol=0)
    # What is left, (.1, -.3), (-.3, .1), (-.1, .3), (.3, -.1), is sqrt(.1) long. At unit length 0 and 3 point one way.
    last = encoded.codes[:, 1]
    assert last[0] == last[3] != last[1] == last[2]
    side = 0.2 / 0.1**0.5
    torch.testing.assert_close(books_of(tokenizer)[1][last[0]], torch.tensor([side, -side]), atol=5e-3, rtol=0)
    assert tokenizer.coder.quantizer.lengths == [pytest.approx(1), pytest.approx(0.1**0.5, abs=2e-3)]
    # (.9, .3) + sqrt(.1) * (side, -side)
    torch.testing.assert_close(encoded.reconstruction(np.array([0]))[0], torch.tensor([1.1, 0.1]), atol=5e-3, rtol=0)


def test_codes_under_given_codebooks_by_hand():
    tokenizer, _ = fitted(rvq(codebook_size=2, max_epochs=0), FOUR)
    quantizer = tokenizer.coder.quantizer
    quantizer.books = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-0.3, 0.9], [0.8, -0.2]])]
    # Left after level 0: nothing, nothing, (-.2, .6) and (.6, -.2); nothing is nearer to the shorter code, 1.
    assert quantizer.codes(FOUR).tolist() == [[0, 1], [1, 1], [0, 0], [1, 1]]
    cost = quantizer.last_level_cost(FOUR, quantizer.codes(FOUR))
    unit = torch.tensor([-0.2, 0.6]) / 0.4**0.5
    expected = [(unit - code).square().sum().item() for code in quantizer.books[1]]
    assert cost[2].tolist() == pytest.approx(expected, abs=1e-6)
    assert cost[0].tolist() == pytest.approx([0.9, 0.68], abs=1e-6)


def test_a_level_is_as_good_as_kmeans():
    vectors = torch.nn.functional.normalize(clusters(600, 6, 16), dim=1)
    ours = theirs = 0.0
    for seed in range(3):
        tokenizer, _ = fitted(rvq(num_levels=1, max_epochs=150, seed=seed), vectors)
        ours += float(nearest(vectors, books_of(tokenizer)[0])[1].mean())
        theirs += float(nearest(vectors, kmeans(vectors, 16, 25, torch.Generator().manual_seed(seed)))[1].mean())
    assert ours < 1.05 * theirs


def test_save_load_and_law_12(tmp_path):
    vectors = clusters(300, 8, 20)
    (first, a), (_, b), (other, _) = (fitted(rvq(max_epochs=3, seed=seed), vectors) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.codes, b.codes)
    assert not torch.equal(books_of(first)[0], books_of(other)[0])
    first.save_pretrained(tmp_path)
    loaded = RVQ.from_pretrained(tmp_path, device="cpu").encode(catalog_of(300), views_of(text=vectors))
    np.testing.assert_array_equal(loaded.codes, a.codes)
    assert rebuilt_cosine(loaded) == rebuilt_cosine(a) > 0.8


def test_twelve_items_and_too_few():
    assert fitted(rvq(codebook_size=12), points(12, 4))[1].codes.shape == (12, 2)
    with pytest.raises(ValueError, match=r"12 distinct vectors.*Lower codebook_size to at most 12"):
        fitted(rvq(codebook_size=13), points(12, 4))
