"""Hierarchical k-means: codes are local, parts are balanced where asked for, and fitted items keep their codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.tokenizers.collisions import num_collisions
from llmrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans, grow_tree, least_base
from llmrec.tokenizers.shared.tree import Tree, rows_of_nodes
from tests.support.clustered import catalog_of, points, views_of


def tokenizer_of(**options) -> HierarchicalKMeans:
    return HierarchicalKMeans(**{"num_levels": 2, "branching": [4, 3], "device": "cpu", **options})


def nested() -> torch.Tensor:
    """48 items: 4 clusters far apart, each of 3 clusters of 4 items."""
    outer, inner = torch.arange(48) // 12, torch.arange(48) // 4 % 3
    return 20 * torch.eye(4, 7)[outer] + 3 * torch.eye(7)[4 + inner] + 0.05 * points(48, 7)


def grown(tokenizer: HierarchicalKMeans, x: torch.Tensor) -> tuple[Tree, torch.Tensor]:
    """Tree and codes of vectors as they are, which views would scale to unit length."""
    generator = torch.Generator().manual_seed(tokenizer.seed)
    return grow_tree(x, tokenizer.planned_sizes(len(x)), tokenizer.iterations, tokenizer.balanced, generator)


@pytest.mark.parametrize("balanced", [True, False])
def test_planted_clusters_of_clusters_are_found(balanced):
    tree, _ = grown(tokenizer_of(balanced=balanced), nested())
    codes = tree.codes(nested()).view(4, 3, 4, 2)
    assert (codes == codes[:, :, :1]).all()
    assert sorted(codes[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    assert (codes[..., 0] == codes[:, :1, :1, 0]).all()
    assert all(sorted(codes[outer, :, 0, 1].tolist()) == [0, 1, 2] for outer in range(4))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 90), st.lists(st.integers(2, 5), min_size=2, max_size=3), st.integers(0, 100))
def test_balanced_parts_of_every_node_differ_by_one_item(num_items, branching, seed):
    tokenizer = tokenizer_of(num_levels=len(branching), branching=branching, iterations=3)
    views, catalog = views_of(text=points(num_items, 3, seed) ** 3), catalog_of(num_items)
    codes = tokenizer.fit(catalog, views).encode(catalog, views).codes
    for level, size in enumerate(branching):
        for prefix in np.unique(codes[:, :level], axis=0):
            inside = codes[(codes[:, :level] == prefix).all(axis=1), level]
            counts = np.bincount(inside, minlength=min(size, len(inside)))
            assert len(counts) == min(size, len(inside))
            assert counts.max() - counts.min() <= 1


def test_left_to_itself_the_tree_has_a_place_for_every_item():
    views, catalog = views_of(text=points(100, 5)), catalog_of(100)
    tokenizer = tokenizer_of(num_levels=3, branching=None).fit(catalog, views)
    assert tokenizer.level_sizes == tokenizer.planned_sizes(100) == [5, 5, 5]  # 4 ** 3 < 100 <= 5 ** 3
    assert num_collisions(tokenizer.encode(catalog, views).codes) == 0
    assert [least_base(n, 3) for n in (1, 8, 9, 27, 28, 10**6, 10**6 + 1)] == [1, 2, 3, 3, 4, 100, 101]


def test_new_items_descend_by_the_nearest_child():
    x = nested()
    tree, _ = grown(tokenizer_of(balanced=False), x)
    new = nested() + 0.1
    first = torch.cdist(new, tree.levels[0].centroids).argmin(1)
    begins = tree.levels[1].first[first]
    second = [
        int((x_D - tree.levels[1].centroids[begin : begin + 3]).square().sum(1).argmin())
        for x_D, begin in zip(new, begins.tolist(), strict=True)
    ]
    assert tree.codes(new).tolist() == [[int(a), b] for a, b in zip(first, second, strict=True)]


def test_children_that_a_parent_lacks_cost_infinity():
    """Five items under three nodes of up to three children each: two items, two items, one."""
    x = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1], [50, 50]])
    tree, _ = grown(tokenizer_of(branching=[3, 3], balanced=False), x)
    codes = tree.codes(x)
    cost = tree.last_level_cost(x, codes)
    assert cost.isinf().sum(1).tolist() == [1, 1, 1, 1, 2]
    for row in range(5):
        assert cost[row, codes[row, 1]] == 0
    assert sorted(cost[0].tolist()) == [0, 1, float("inf")]
    torch.testing.assert_close(tree.rebuild(codes), x)


def test_fitted_items_keep_their_codes_beside_new_ones_in_any_order(tmp_path):
    """Balance gives some items another code than the nearest; a bigger catalogue and a loaded tokenizer know which."""
    x = points(60, 4) ** 3
    tokenizer = tokenizer_of().fit(catalog_of(60), views_of(text=x))
    encoded = tokenizer.encode(catalog_of(60), views_of(text=x))
    assert not np.array_equal(encoded.codes, tokenizer.coder.quantizer.codes(encoded.vectors(np.arange(60))).numpy())
    tokenizer.save_pretrained(tmp_path)
    grown = HierarchicalKMeans.from_pretrained(tmp_path, "cpu").encode(
        catalog_of(63), views_of(text=torch.cat([x, points(3, 4, seed=5)]))
    )
    np.testing.assert_array_equal(grown.codes[:60], encoded.codes)
    own = tokenizer.coder.quantizer.last_level_cost(encoded.vectors(np.arange(60)), torch.from_numpy(encoded.codes))
    torch.testing.assert_close(encoded.last_level_cost(np.arange(60)), own)


def test_items_whose_vectors_moved_do_not_keep_their_codes():
    x = points(60, 4) ** 3
    tokenizer = tokenizer_of().fit(catalog_of(60), views_of(text=x))
    moved = tokenizer.encode(catalog_of(60), views_of(text=-x))
    np.testing.assert_array_equal(moved.codes, tokenizer.coder.quantizer.codes(moved.vectors(np.arange(60))).numpy())


def test_equal_vectors_share_a_code_unless_balance_parts_them():
    x = torch.cat([points(10, 4), points(10, 4)])
    shared, _ = grown(tokenizer_of(balanced=False, branching=[5, 5]), x)
    assert torch.equal(*shared.codes(x).split(10))
    parted = grown(tokenizer_of(balanced=True, branching=[5, 5]), x)[1]
    assert len(parted.unique(dim=0)) == 20


def test_the_same_seed_gives_the_same_codes():
    views, catalog = views_of(text=points(80, 5)), catalog_of(80)
    for balanced in (True, False):
        first, second, other = (
            tokenizer_of(balanced=balanced, seed=seed).fit(catalog, views).encode(catalog, views).codes
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)


def test_rows_are_grouped_by_node():
    assert [rows.tolist() for rows in rows_of_nodes(torch.tensor([5, 0, 5, 2]))] == [[1], [3], [0, 2]]


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="give a number above 1 for each of the 2 levels"):
        tokenizer_of(branching=[4])
    with pytest.raises(ValueError, match=r"branching is \[4, 1\]; at least 2 is needed"):
        tokenizer_of(branching=[4, 1])
    with pytest.raises(ValueError, match="all of the 1 item vectors are equal"):
        tokenizer_of(branching=None).fit(catalog_of(1), views_of(text=points(1, 3)))
    with pytest.raises(ValueError, match="all of the 9 item vectors are equal"):
        tokenizer_of().fit(catalog_of(9), views_of(text=np.ones((9, 3))))
    with pytest.raises(ValueError, match="fit it first"):
        tokenizer_of().encode(catalog_of(9), views_of(text=points(9, 3)))
