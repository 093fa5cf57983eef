"""P5-CID finds planted communities, cuts like scikit-learn, and gives unique semantic IDs of several lengths."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable
from llmrec.tokenizers import collisions, p5_cid
from llmrec.tokenizers.p5_cid import P5CID, UNIFORM, all_pairs, cluster_qr, spectral_labels
from llmrec.views import ItemViews

NO_VIEWS = ItemViews()


def catalog_of(num_items: int, sequences: list[list[int]]) -> Catalog:
    """Items '0', '1', ... and one user per training sequence of item rows."""
    ids = [str(row) for row in range(num_items)]
    rows = [
        {"user_id": str(user), "split": "train", "history": [str(i) for i in items[:-1]], "target": str(items[-1])}
        for user, items in enumerate(sequences)
    ]
    return Catalog(pa.table({"item_id": ids, "title": ids}), pa.Table.from_pylist(rows))


def communities(sizes: list[int], users: int = 60, length: int = 6, seed: int = 0) -> list[list[int]]:
    """Users who take items of one community, but for one in ten."""
    rng, ends = np.random.default_rng(seed), np.cumsum(sizes)
    sequences = []
    for user in range(users * len(sizes)):
        group = user % len(sizes)
        own = rng.integers(ends[group] - sizes[group], ends[group], length)
        stray = rng.integers(0, ends[-1], length)
        sequences.append(np.where(rng.random(length) < 0.1, stray, own).tolist())
    return sequences


def affinity_of(num_items: int, sequences: list[list[int]]) -> sparse.csr_array:
    return all_pairs(catalog_of(num_items, sequences).train, num_items)


def test_pairs_count_at_any_distance_by_hand():
    """0 1 2 0: each of 0-1 and 0-2 twice, 1-2 once; 2 3 once; 4 alone; an item beside itself never."""
    expected = np.zeros((5, 5))
    for i, j, count in ((0, 1, 2), (0, 2, 2), (1, 2, 1), (2, 3, 1)):
        expected[i, j] = expected[j, i] = count
    counts = affinity_of(5, [[0, 1, 2, 0], [2, 3], [4]])
    np.testing.assert_array_equal(counts.toarray(), expected)
    assert counts.nnz == 8


@pytest.mark.parametrize("dense", [1024, 20], ids=["as a whole", "by iteration"])
def test_clusters_are_those_of_scikit_learn(monkeypatch, dense):
    monkeypatch.setattr(p5_cid, "DENSE", dense)
    affinity = affinity_of(90, communities([40, 30, 20]))
    theirs = SpectralClustering(3, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
    labels = spectral_labels(affinity, 3, seed=0)
    assert adjusted_rand_score(labels, theirs.fit_predict(affinity.toarray() + UNIFORM)) == 1
    assert adjusted_rand_score(labels, np.repeat([0, 1, 2], [40, 30, 20])) == 1


def test_pieces_of_a_graph_become_clusters():
    assert len(set(spectral_labels(affinity_of(6, [[0, 1], [2, 3], [4, 5]]), 3, seed=0)[[0, 2, 4]])) == 3


def test_cluster_qr_recovers_indicators_turned_by_any_rotation():
    labels = np.array([0, 0, 1, 2, 2, 2, 1])
    turned = np.eye(3)[labels] @ np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    assert adjusted_rand_score(cluster_qr(turned), labels) == 1


def test_items_of_one_community_share_the_first_code_and_the_others_are_the_rest():
    catalog = catalog_of(99, communities([40, 30, 20]))  # nobody has taken 90 to 98
    tokenizer = P5CID(clusters=3, leaf_size=8).fit(catalog, NO_VIEWS)
    codes = tokenizer.encode(catalog, NO_VIEWS).codes
    first = codes[:, 0]
    assert [len(set(first[rows])) for rows in (slice(0, 40), slice(40, 70), slice(70, 90))] == [1, 1, 1]
    assert set(first[:90]) == {0, 1, 2} and set(first[90:]) == {3}
    assert (codes[90:] != -1).sum(1).max() == 3  # nine are one too many for a leaf: two parts, then ordinals
    assert codes[90:, 1].tolist() == [0] * 5 + [1] * 4 and codes[90:, 2].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 9), st.sampled_from(["shared", "path_unique"]))
def test_semantic_ids_are_unique_prefix_free_and_within_their_levels(seed, clusters, leaf_size, tokens):
    rng = np.random.default_rng(seed)
    num_items = int(rng.integers(2, 60))
    catalog = catalog_of(num_items, [rng.integers(0, num_items, 5).tolist() for _ in range(15)] + [[0, 1]])
    tokenizer = P5CID(clusters=clusters, leaf_size=leaf_size, tokens=tokens).fit(catalog, NO_VIEWS)
    encoded = tokenizer.encode(catalog, NO_VIEWS)
    codes, sizes, _ = collisions.resolve("accept", encoded, tokenizer.level_sizes)
    table = SidTable(catalog.item_ids, codes, level_sizes=sizes)
    assert table.bucket_sizes.max() == 1
    assert table.level_sizes == sizes  # no semantic ID needed a terminal code
    leaves = {}
    for row in codes.tolist():
        *path, ordinal = [code for code in row if code != -1]
        leaves.setdefault(tuple(path), []).append(ordinal)
    assert max(map(len, leaves.values())) <= leaf_size


def test_path_unique_codes_mean_one_group_or_an_ordinal():
    catalog = catalog_of(90, communities([40, 30, 20]))
    shared, unique = (
        P5CID(clusters=3, leaf_size=8, tokens=tokens).fit(catalog, NO_VIEWS).encode(catalog, NO_VIEWS).codes
        for tokens in ("shared", "path_unique")
    )
    assert ((shared == -1) == (unique == -1)).all()
    for level in range(1, unique.shape[1]):
        inside = (unique[:, level + 1 :] != -1).any(axis=1)  # of a group that goes on, not an ordinal
        groups = {
            code: {tuple(row[:level]) for row in unique[unique[:, level] == code]} for code in unique[inside, level]
        }
        assert all(len(parents) == 1 for parents in groups.values())
        ends = (unique[:, level] != -1) & ~inside
        assert set(unique[ends, level]).isdisjoint(groups)
    reused = shared[(shared[:, 2:] != -1).any(axis=1)]
    assert max(len({tuple(row[:1]) for row in reused[reused[:, 1] == code]}) for code in reused[:, 1]) > 1


def test_splits_that_never_end_are_cut_into_equal_parts(monkeypatch):
    monkeypatch.setattr(p5_cid, "spectral_labels", lambda affinity, *_: np.zeros(affinity.shape[0], np.int64))
    catalog = catalog_of(10, [list(range(10))])
    codes = P5CID(clusters=4, leaf_size=3).fit(catalog, NO_VIEWS).encode(catalog, NO_VIEWS).codes
    assert codes[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert codes[:, 1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1]


def test_splits_that_only_peel_off_items_stop(monkeypatch):
    """Each split parts one item from the others; after two, the ten that are left are cut into 3, 3, 2 and 2."""
    monkeypatch.setattr(p5_cid, "spectral_labels", lambda affinity, *_: np.minimum(np.arange(affinity.shape[0]), 1))
    monkeypatch.setattr(p5_cid, "MAX_SPLITS", 2)
    catalog = catalog_of(12, [list(range(12))])
    codes = P5CID(clusters=4, leaf_size=3).fit(catalog, NO_VIEWS).encode(catalog, NO_VIEWS).codes
    assert codes[:3].tolist() == [[0, 0, -1, -1], [1, 0, 0, -1], [1, 1, 0, 0]]
    assert codes[2:, 2].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]


def test_save_and_load_encode_alike_and_items_keep_their_codes_in_another_order(tmp_path):
    catalog = catalog_of(30, communities([15, 15]))
    first, second = (P5CID(clusters=2, leaf_size=4).fit(catalog, NO_VIEWS) for _ in range(2))
    codes = first.encode(catalog, NO_VIEWS).codes
    np.testing.assert_array_equal(codes, second.encode(catalog, NO_VIEWS).codes)
    first.save_pretrained(tmp_path)
    loaded = P5CID.from_pretrained(tmp_path)
    assert loaded.level_sizes == first.level_sizes
    np.testing.assert_array_equal(codes, loaded.encode(catalog, NO_VIEWS).codes)
    np.testing.assert_array_equal(codes[:20], loaded.encode(catalog_of(20, [[0, 1]]), NO_VIEWS).codes)


def test_cold_items_and_catalogues_without_behaviour_are_refused():
    catalog = catalog_of(30, communities([15, 15]))
    with pytest.raises(ValueError, match="fit it first"):
        P5CID().encode(catalog, NO_VIEWS)
    with pytest.raises(ValueError, match=r"has 2 items that p5_cid was not fitted on, first '30'.*reads views"):
        P5CID().fit(catalog, NO_VIEWS).encode(catalog_of(32, [[0, 1]]), NO_VIEWS)
    with pytest.raises(ValueError, match=r"No two items occur in one training sequence.*reads views"):
        P5CID().fit(catalog_of(3, [[0], [1, 1]]), NO_VIEWS)
    with pytest.raises(ValueError, match="clusters is 1; at least 2 is needed; leaf_size is 0"):
        P5CID(clusters=1, leaf_size=0)
