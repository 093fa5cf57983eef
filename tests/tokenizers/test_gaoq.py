"""GAOQ: distinct balanced codes, one direction per code under every parent, free anchors for new items."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.diagnostics.structure import index_consistency
from llmrec.sid.table import SidTable
from llmrec.tokenizers.append import PublishedSids, append
from llmrec.tokenizers.collisions import num_collisions, resolve
from llmrec.tokenizers.collisions.append import codes_of_new_items
from llmrec.tokenizers.gaoq import GAOQ, derived_branching, grow_anchored_tree
from llmrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from llmrec.tokenizers.shared.anchored_tree import anchors_of, matched, offset_cosines
from tests.support.clustered import SPLIT, catalog_of, clusters, points, views_of

pytestmark = pytest.mark.usefixtures("one_thread")


def gaoq_of(**options) -> GAOQ:
    return GAOQ(**{"branching": [4, 3, 5], "device": "cpu", "iterations": 5, **options})


def codes_for(tokenizer, x: torch.Tensor) -> np.ndarray:
    catalog, views = catalog_of(len(x)), views_of(text=x)
    return tokenizer.fit(catalog, views).encode(catalog, views).codes


def node_sizes(codes: np.ndarray, level: int) -> np.ndarray:
    return np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]


@pytest.fixture(scope="module")
def thousand() -> torch.Tensor:
    return clusters(1000, 24, 40, spread=0.7)


@pytest.fixture(scope="module")
def fitted(thousand) -> tuple[GAOQ, np.ndarray]:
    tokenizer = GAOQ(device="cpu")
    return tokenizer, codes_for(tokenizer, thousand)


def test_a_thousand_items_have_distinct_codes_and_clusters_that_differ_by_one(fitted):
    tokenizer, codes = fitted
    assert tokenizer.level_sizes == [6, 12, 14]  # 1000 / 15 clusters, 6 x 11.1; 1000 / 72 items in each
    assert num_collisions(codes) == 0 and (codes.min(axis=0) == 0).all()
    for level, (count, low, high) in enumerate([(6, 166, 167), (72, 13, 14), (1000, 1, 1)]):
        sizes = node_sizes(codes, level)
        assert (len(sizes), sizes.min(), sizes.max()) == (count, low, high)


@pytest.mark.parametrize("missing", [0.3, 0.6])
def test_items_that_no_view_knows_get_places_of_their_own(tmp_path, missing):
    """They all have the zero vector, and with it the same nearest codes."""
    x = clusters(300, 12, 20)
    x[torch.randperm(300, generator=torch.Generator().manual_seed(0))[: int(300 * missing)]] = 0
    catalog, views, tokenizer = catalog_of(300), views_of(text=x), GAOQ(device="cpu")
    codes = tokenizer.fit(catalog, views).encode(catalog, views).codes
    assert num_collisions(codes) == 0 and (codes < tokenizer.level_sizes).all()
    tokenizer.save_pretrained(tmp_path)
    np.testing.assert_array_equal(GAOQ.from_pretrained(tmp_path, "cpu").encode(catalog, views).codes, codes)
    backwards = [str(row) for row in reversed(range(300))]
    turned = Catalog(pa.table({"item_id": backwards, "title": backwards}), SPLIT)
    np.testing.assert_array_equal(tokenizer.encode(turned, views_of(text=x.flip(0))).codes[::-1], codes)


def test_offsets_of_one_code_agree_more_than_permuted_and_more_than_without_anchors(thousand, fitted):
    x = torch.nn.functional.normalize(thousand, dim=1)
    plain = codes_for(HierarchicalKMeans(branching=[6, 12, 14], device="cpu"), thousand)
    with_anchors, without = (index_consistency(codes, x, seed=0) for codes in (fitted[1], plain))
    for level in (0, 1):
        observed = with_anchors[level]
        assert observed["cosine"] > observed["null_mean"] + 3 * observed["null_sd"]
        assert observed["cosine"] > without[level]["cosine"] + 3 * observed["null_sd"]


def test_anchors_are_orthonormal_columns_of_q_and_unit_vectors_beyond_the_dimension():
    anchors = anchors_of(5, 8, torch.Generator().manual_seed(3))
    gaussian = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(anchors @ anchors.T, torch.eye(5))
    torch.testing.assert_close(anchors.T @ (anchors @ gaussian), gaussian)  # the same span as what was drawn
    many = anchors_of(9, 4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(many.norm(dim=1), torch.ones(9))
    assert (many @ many.T - torch.eye(9)).abs().max() < 0.999


def test_matching_by_hand():
    """Both children like anchor 0 best; the first gives way, since it loses less: .6 + 1 above .8 + 0."""
    anchors = torch.eye(3)[:2]
    parent, children = torch.tensor([1.0, 1, 1]), torch.tensor([[1.8, 1.6, 1], [3, 1, 1]])
    cosine = offset_cosines(children, parent, anchors)
    torch.testing.assert_close(cosine, torch.tensor([[0.8, 0.6], [1.0, 0.0]]))
    assert matched(cosine).tolist() == [1, 0]
    assert offset_cosines(parent[None] * (1 + 1e-7), parent, anchors).tolist() == [[0, 0]]  # rounding has no direction


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 99))
def test_matching_is_the_best_of_all_injections(num_children, spare, seed):
    cosine = points(num_children, num_children + spare, seed).tanh()
    chosen = matched(cosine)
    best = max(
        sum(float(cosine[c, a]) for c, a in enumerate(order))
        for order in itertools.permutations(range(num_children + spare), num_children)
    )
    assert len(set(chosen.tolist())) == num_children
    assert float(cosine[torch.arange(num_children), chosen].sum()) == pytest.approx(best, abs=1e-5)


def test_planted_steps_get_one_code_under_every_parent():
    """Three far centres, each with the same two steps to its sub-clusters, of three items: a step is a code."""
    centres, steps = 20 * torch.eye(3, 8), 2 * torch.eye(8)[3:5]
    x = (centres[:, None, None] + steps[None, :, None] + 0.1 * points(18, 8).view(3, 2, 3, 8)).reshape(18, 8)
    codes = grow_anchored_tree(x, [3, 2, 3], 5, torch.Generator().manual_seed(0))[1].view(
        3, 2, 3, 3
    )  # views would be scaled
    assert (codes[:, :, :, 1] == codes[:1, :, :1, 1]).all() and codes[0, :, 0, 1].unique().numel() == 2


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 90), st.lists(st.integers(2, 5), min_size=2, max_size=3), st.integers(0, 100))
def test_any_tree_with_room_gives_distinct_balanced_codes(num_items, branching, seed):
    if np.prod(branching) < num_items:
        branching = None
    tokenizer = gaoq_of(branching=branching, iterations=2)
    codes = codes_for(tokenizer, points(num_items, 3, seed) ** 3)  # 3 dimensions: more anchors than that, too
    assert num_collisions(codes) == 0 and (codes < tokenizer.level_sizes).all()
    for level in range(codes.shape[1] - 1):
        for prefix in np.unique(codes[:, :level], axis=0):
            inside = codes[(codes[:, :level] == prefix).all(axis=1)]
            sizes = node_sizes(inside, level)
            assert len(sizes) == min(tokenizer.level_sizes[level], len(inside)) and np.ptp(sizes) <= 1


def test_the_papers_branching_has_room_and_left_out_it_is_like_it():
    assert derived_branching(24_000) == [28, 58, 15]  # ReSID on a set of this size: 32 40 19
    for num_items in (1, 2, 9, 100, 12_101, 10**6):
        sizes = derived_branching(num_items)
        assert np.prod(sizes) >= num_items and min(sizes) >= 2
        assert sizes[2] == 2 or (sizes[2] - 1) * sizes[0] * sizes[1] < num_items
    assert gaoq_of(branching=None).planned_sizes(1000) == [6, 12, 14]


def test_fitted_items_keep_their_codes_of_new_items_new_ones_and_from_disk(tmp_path, thousand, fitted):
    tokenizer, codes = fitted
    tokenizer.save_pretrained(tmp_path)
    loaded = GAOQ.from_pretrained(tmp_path, "cpu")
    assert loaded.level_sizes == tokenizer.level_sizes
    grown = torch.cat([thousand, points(30, 24, seed=5)])
    found, again = (t.encode(catalog_of(1030), views_of(text=grown)) for t in (tokenizer, loaded))
    np.testing.assert_array_equal(found.codes[:1000], codes)
    np.testing.assert_array_equal(found.codes, again.codes)
    rows = np.arange(990, 1030)
    torch.testing.assert_close(found.last_level_cost(rows), again.last_level_cost(rows), rtol=0, atol=0)


def test_new_items_take_the_nearest_child_and_then_the_free_anchor_nearest_in_cosine(thousand):
    tokenizer = gaoq_of(branching=[6, 12, 16])  # 13 or 14 items in each last cluster: two or three anchors are free
    codes = codes_for(tokenizer, thousand)
    encoded = tokenizer.encode(catalog_of(1003), views_of(text=torch.cat([thousand, points(3, 24, seed=5)])))
    x = encoded.vectors(np.arange(1003))
    for row in range(1000, 1003):
        firsts = [x[:1000][codes[:, 0] == c].mean(0) for c in range(6)]
        inside = codes[:, 0] == np.argmin([((mean - x[row]) ** 2).sum() for mean in firsts])
        means = [x[:1000][inside & (codes[:, 1] == c)].mean(0) for c in range(12)]
        assert encoded.codes[row, 1] == np.argmin([((mean - x[row]) ** 2).sum() for mean in means])
        cosine = torch.cosine_similarity(
            (x[row] - means[encoded.codes[row, 1]])[None], tokenizer.coder.quantizer.anchors[1]
        )
        assert encoded.codes[row, 2] == cosine.argmax()
        torch.testing.assert_close(encoded.last_level_cost(np.array([row]))[0], 1 - cosine)
        free = np.setdiff1d(np.arange(16), codes[(codes[:, :2] == encoded.codes[row, :2]).all(axis=1), 2])
        placed = codes_of_new_items("hungarian_leaf", codes, encoded, np.array([row]))
        assert placed[0, 2] == free[cosine[free].argmax()]


def test_new_items_whose_cluster_is_full_go_to_the_nearest_with_room():
    """Four clusters of five places, 19 items: three are full, and whoever comes second finds no room at all."""
    x = clusters(19, 4, 4, spread=0.1)
    tokenizer = gaoq_of(branching=[2, 2, 5])
    codes = codes_for(tokenizer, x)
    (short,) = [p for p in itertools.product(range(2), repeat=2) if (codes[:, :2] == p).all(axis=1).sum() == 4]
    far = int(np.flatnonzero(codes[:, 0] != short[0])[0])
    catalog, views = catalog_of(20), views_of(text=torch.cat([x, x[far : far + 1]]))
    encoded = tokenizer.encode(catalog, views)
    assert tuple(encoded.codes[19, :2]) == tuple(codes[far, :2]) != short
    placed = codes_of_new_items("hungarian_leaf", codes, encoded, np.array([19]))[0]
    assert tuple(placed[:2]) == short and num_collisions(np.vstack([codes, placed])) == 0
    assert codes_of_new_items("hungarian_leaf", codes, encoded, np.array([], np.int64)).shape == (0, 3)
    published = PublishedSids(
        SidTable(catalog_of(19).item_ids, codes, level_sizes=[2, 2, 5]), tokenizer, "hungarian_leaf"
    )
    grown = append(published, catalog, views)
    assert grown.table.codes([19]).tolist() == [placed.tolist()]
    assert "1 new items are in the nearest cluster with free codes, as their own is full." in grown.notes


def test_new_items_beyond_all_anchors_are_refused_or_get_a_suffix():
    x = points(20, 4)
    tokenizer = gaoq_of(branching=[2, 2, 5])
    codes, grown = codes_for(tokenizer, x), torch.cat([x, x[:1]])
    encoded = tokenizer.encode(catalog_of(21), views_of(text=grown))
    with pytest.raises(ValueError, match="1 new items find no free last code: of the 20 places"):
        codes_of_new_items("hungarian_leaf", codes, encoded, np.array([20]))
    assert num_collisions(resolve("suffix_if_collided", encoded, [2, 2, 5])[0]) == 0


def test_hungarian_leaf_leaves_fitted_codes_as_they_are(thousand, fitted):
    encoded = fitted[0].encode(catalog_of(1000), views_of(text=thousand))
    np.testing.assert_array_equal(resolve("hungarian_leaf", encoded, [6, 12, 14])[0], encoded.codes)
    leaf = (encoded.codes[:, :2] == encoded.codes[0, :2]).all(axis=1).nonzero()[0]
    assert matched(-encoded.last_level_cost(leaf)).tolist() == encoded.codes[leaf, 2].tolist()


def test_reconstruction_is_the_mean_of_the_last_cluster(thousand, fitted):
    encoded = fitted[0].encode(catalog_of(1000), views_of(text=thousand))
    leaf = (encoded.codes[:, :2] == encoded.codes[7, :2]).all(axis=1).nonzero()[0]
    torch.testing.assert_close(encoded.reconstruction(np.array([7]))[0], encoded.vectors(leaf).mean(0))


def test_the_same_seed_gives_the_same_codes_and_anchors():
    x = points(60, 6)
    one, same, other = (gaoq_of(seed=seed) for seed in (1, 1, 2))
    codes = codes_for(one, x)
    np.testing.assert_array_equal(codes, codes_for(same, x))
    assert not np.array_equal(codes, codes_for(other, x))
    anchors, again, others = (tokenizer.coder.quantizer.anchors[0] for tokenizer in (one, same, other))
    assert torch.equal(anchors, again) and not torch.equal(anchors, others)


def test_items_with_equal_vectors_are_told_apart():
    codes = codes_for(gaoq_of(branching=[2, 2, 5]), torch.cat([points(4, 4)] * 5))
    assert num_collisions(codes) == 0


def test_what_has_no_room_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match=r"branching \[4, 3, 5\] has 60 places for 61 items.*number 6 instead of 5"):
        codes_for(gaoq_of(), points(61, 4))
    for branching in ([4], []):
        with pytest.raises(ValueError, match="give two levels or more, each a number above 1"):
            gaoq_of(branching=branching)
    with pytest.raises(ValueError, match=r"branching is \[4, 1, 20\]; at least 2 is needed"):
        gaoq_of(branching=[4, 1, 20])
    with pytest.raises(ValueError, match="all of the 9 item vectors are equal"):
        codes_for(gaoq_of(), torch.ones(9, 3))
    with pytest.raises(ValueError, match="fit it first"):
        gaoq_of().encode(catalog_of(9), views_of(text=points(9, 3)))


def test_a_directory_of_another_tree_is_refused(tmp_path):
    tokenizer = gaoq_of()
    codes_for(tokenizer, points(60, 4))
    tokenizer.coder.quantizer.sizes = [3, 4, 5]
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not those of level sizes \[3, 4, 5\]"):
        GAOQ.from_pretrained(tmp_path, "cpu")
