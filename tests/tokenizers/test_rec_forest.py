"""RecForest: leaves per node, the choice of the number of children, trees that differ, files, and one tree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid.aliases import aliases_of, join_aliases
from llmrec.sid.table import SidTable
from llmrec.tokenizers.collisions import num_collisions
from llmrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from llmrec.tokenizers.rec_forest import RecForest
from tests.support.clustered import catalog_of, clusters, points, views_of


def forest_of(**options) -> RecForest:
    return RecForest(**{"num_trees": 3, "num_levels": 3, "iterations": 5, "device": "cpu", **options})


def codes_of(tokenizer, vectors) -> list[np.ndarray]:
    views, catalog = views_of(text=vectors), catalog_of(len(vectors))
    return [encoded.codes for encoded in tokenizer.fit(catalog, views).encode_aliases(catalog, views)]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 90), st.integers(1, 3), st.sampled_from([0.5, 0.8, 1.0]), st.integers(0, 100))
def test_leaf_counts_of_the_nodes_of_every_tree_differ_by_one_at_most(num_items, num_levels, features, seed):
    forest = forest_of(num_levels=num_levels, features=features, seed=seed, num_trees=2, iterations=3)
    for codes in codes_of(forest, points(num_items, 4, seed) ** 3):
        assert num_collisions(codes) == 0  # every item has a leaf of its own
        for level in range(num_levels):
            for prefix in np.unique(codes[:, :level], axis=0):
                counts = np.bincount(codes[(codes[:, :level] == prefix).all(axis=1), level])
                assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("num_items", "num_levels", "children", "leaves_per_item"),
    [
        (12_101, 3, 23, 1.005),  # Beauty; 18 children, the paper's, need four levels: 8.67 leaves per item
        (18_357, 2, 136, 1.008),  # Sports
        (18_357, 3, 27, 1.072),
        (11_924, 2, 110, 1.015),  # Toys
        (11_924, 3, 23, 1.020),
        (3_884, 2, 63, 1.022),
        (3_884, 3, 16, 1.055),
    ],
)
def test_children_are_the_fewest_that_give_every_item_a_leaf(num_items, num_levels, children, leaves_per_item):
    assert forest_of(num_levels=num_levels).planned_sizes(num_items) == [children] * num_levels
    assert children**num_levels / num_items == pytest.approx(leaves_per_item, abs=6e-4)
    assert (children - 1) ** num_levels < num_items


def test_trees_differ_and_agree_on_clusters():
    """Items of one cluster share their first code far more often than others do, in every tree."""
    forest = forest_of(num_trees=3)
    trees = codes_of(forest, clusters(125, 12, 5, spread=0.05))
    assert forest.counts == {"leaves_per_item": 1.0}
    cluster = np.arange(125) % 5
    together = cluster[:, None] == cluster
    for codes in trees:
        same = codes[:, 0, None] == codes[:, 0]
        assert same[together].mean() > 0.9 > 0.1 > same[~together].mean()
    assert all((one != other).any() for one, other in itertools.pairwise(trees))


def test_one_tree_of_all_features_is_hierarchical_kmeans():
    vectors = clusters(60, 8, 6)
    plain = HierarchicalKMeans(num_levels=3, iterations=5, device="cpu")
    (one,), (other,) = codes_of(forest_of(num_trees=1, features=1.0), vectors), codes_of(plain, vectors)
    table = join_aliases(catalog_of(60).item_ids, [one], plain.level_sizes, share_codes=False)
    assert table.sha256 == SidTable(catalog_of(60).item_ids, other, level_sizes=plain.level_sizes).sha256


def test_another_tree_leaves_the_first_ones_alone():
    vectors = points(50, 6)
    few, many = codes_of(forest_of(num_trees=2), vectors), codes_of(forest_of(num_trees=4), vectors)
    assert [codes.tolist() for codes in few] == [codes.tolist() for codes in many[:2]]


def test_a_saved_forest_gives_all_its_codes_again(tmp_path):
    vectors = points(40, 6)
    forest = forest_of()
    trees = codes_of(forest, vectors)
    forest.save_pretrained(tmp_path)
    again = RecForest.from_pretrained(tmp_path, "cpu")
    encoded = [one.codes.tolist() for one in again.encode_aliases(catalog_of(40), views_of(text=vectors))]
    assert encoded == [codes.tolist() for codes in trees]
    assert again.num_aliases == 3 and again.level_sizes == forest.level_sizes


def test_trees_have_codes_of_their_own():
    trees = codes_of(forest_of(), points(30, 5))
    table = join_aliases(catalog_of(30).item_ids, trees, [4, 4, 4], share_codes=RecForest.shares_codes)
    for level in range(3):
        used = [set(tree.all_codes[:, level].tolist()) for tree in aliases_of(table)]
        assert not set.intersection(*used) and table.level_sizes[level] == 12
