"""Neighbours found again, reconstruction, consistency, overlap and cold items: by hand, and against a slow route."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.diagnostics import neighbours, sample
from llmrec.diagnostics.cold_start import code_distances, cold_start_report
from llmrec.diagnostics.neighbours import (
    behaviour_neighbours,
    hit_rate,
    nearest_items,
    reconstruction_report,
    separability,
)
from llmrec.diagnostics.sample import Sample, common_prefixes, cosines, draw
from llmrec.diagnostics.structure import history_overlap, index_consistency
from tests.diagnostics.test_diagnostics import build_catalog

CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])


def all_of(vectors: torch.Tensor | None, reconstruction: torch.Tensor | None = None, num_items: int = 4) -> Sample:
    rows = np.arange(num_items if vectors is None else len(vectors))
    return Sample(rows, rows, vectors, reconstruction)


def test_common_prefixes_by_hand():
    lengths = common_prefixes(CODES)(np.array([0, 3]))
    assert lengths.tolist() == [[2, 2, 1, 0], [0, 0, 0, 2]]


def test_hit_rate_shares_the_last_places_among_ties():
    # Of item 0: item 1 (prefix of 2) is first, item 2 second. Of item 3 all others tie at 0: each is one of two in 2/3.
    similarity = common_prefixes(CODES)
    assert hit_rate(similarity, np.array([0]), torch.tensor([[2]]), 1) == 0
    assert hit_rate(similarity, np.array([0]), torch.tensor([[2]]), 2) == 1
    assert hit_rate(similarity, np.array([3]), torch.tensor([[0]]), 2) == pytest.approx(2 / 3)
    assert hit_rate(similarity, np.array([0, 3]), torch.tensor([[1, 3], [0, -1]]), 2) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )


@settings(derandomize=True, max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6))
def test_hit_rate_is_the_expectation_over_random_order(seed, k):
    rng = np.random.default_rng(seed)
    codes, queries = rng.integers(0, 2, (9, 2)), np.array([2, 5])
    wanted = np.array([rng.choice(np.delete(np.arange(9), query), 3, replace=False) for query in queries])
    exact = hit_rate(common_prefixes(codes), queries, torch.from_numpy(wanted), k)
    found = []
    for _ in range(400):
        for query, of in zip(queries, wanted, strict=True):
            length = (codes == codes[query]).cumprod(axis=1).sum(axis=1) + rng.random(9) / 2
            length[query] = -1
            found.append(np.isin(of, np.argsort(-length)[:k]).mean())
    assert exact == pytest.approx(np.mean(found), abs=0.06)


def test_blocks_do_not_change_a_hit_rate(monkeypatch):
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    queries = np.arange(30)
    whole = nearest_items(cosines(vectors), queries, 30, 5)
    monkeypatch.setattr(sample, "BLOCK", 100)  # three queries at once
    parts = nearest_items(cosines(vectors), queries, 30, 5)
    assert torch.equal(whole, parts)
    assert hit_rate(cosines(vectors), queries, whole, 5) == pytest.approx(1)
    assert hit_rate(cosines(vectors.flip(1)), queries, whole, 29) == pytest.approx(1)


def test_behaviour_neighbours_are_the_most_frequent_within_the_window():
    catalog = build_catalog(4, [[0, 1], [0, 1], [0, 2], [3]])
    found = behaviour_neighbours(catalog, all_of(None), seed=0)
    assert found[:, :3].tolist() == [[1, 2, -1], [0, -1, -1], [0, -1, -1], [-1, -1, -1]]
    assert found.shape == (4, neighbours.K)


def test_the_seed_decides_among_equally_frequent_neighbours(monkeypatch):
    monkeypatch.setattr(neighbours, "K", 1)
    catalog = build_catalog(4, [[1, 0, 2]])
    first = {int(behaviour_neighbours(catalog, all_of(None), seed)[0, 0]) for seed in range(20)}
    assert first == {1, 2}


def test_missing_items_are_nobodys_neighbours():
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [0, 0], [0, 1]])
    found = nearest_items(cosines(vectors), np.arange(4), 4, 2, torch.tensor([False, False, True, False]))
    assert found.tolist() == [[1, 3], [0, 3], [-1, -1], [1, 0]]


def test_a_perfect_reconstruction_loses_nothing():
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    report = reconstruction_report(all_of(vectors, vectors.clone()))
    assert (report["cosine"], report["separability"], report["batch"]) == (pytest.approx(1), 1.0, 50)
    assert report["knn_overlap"] == pytest.approx(1) and report["knn_overlap_random"] == 10 / 49


def test_a_reconstruction_that_says_nothing_is_chance():
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    report = reconstruction_report(all_of(vectors, torch.ones(50, 1).expand(50, 6) * 3))
    assert report["knn_overlap"] == pytest.approx(report["knn_overlap_random"])
    assert report["separability"] == pytest.approx(1 / 50)  # all reconstructions have one nearest vector
    assert reconstruction_report(all_of(vectors)) is None


def test_separability_shares_ties():
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert separability(vectors, vectors) == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_items_without_a_vector_are_not_drawn():
    vectors = torch.tensor([[1.0], [0.0], [2.0]])
    found = draw(3, lambda rows: vectors[rows], lambda rows: vectors[rows] * 2, seed=0)
    assert found.rows.tolist() == [0, 2] and found.queries.tolist() == [0, 1]
    assert found.vectors.tolist() == [[1], [2]] and found.reconstruction.tolist() == [[2], [4]]


def test_a_sample_is_drawn_with_the_seed(monkeypatch):
    monkeypatch.setattr(sample, "MAX_ITEMS", 20)
    monkeypatch.setattr(sample, "MAX_QUERIES", 5)
    one, same, other = (draw(100, None, None, seed) for seed in (0, 0, 1))
    assert len(set(one.rows.tolist())) == 20 and len(set(one.queries.tolist())) == 5 and one.queries.max() < 20
    assert np.array_equal(one.rows, same.rows) and not np.array_equal(one.rows, other.rows)


def test_consistency_by_hand():
    # Children of 0 at (0, 1) and (0, -1), of 1 at (5, 1) and (5, -1): code 0 steps up in both, code 1 down in both.
    vectors = torch.tensor([[0.0, 1], [0, -1], [5, 1], [5, -1]])
    report = index_consistency(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), vectors, seed=0)
    assert len(report) == 1
    assert (report[0]["level"], report[0]["pairs"], report[0]["cosine"]) == (1, 2, pytest.approx(1))
    # Permuted, each parent is turned or not: the mean cosine is 1 or -1.
    assert -1 < report[0]["null_mean"] < 1 and report[0]["null_sd"] > 0.5
    turned = index_consistency(np.array([[0, 0], [0, 1], [1, 1], [1, 0]]), vectors, seed=0)
    assert turned[0]["cosine"] == pytest.approx(-1)


def test_consistency_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(1)
    codes, vectors = rng.integers(0, 3, (60, 3)), torch.from_numpy(rng.normal(size=(60, 4))).float()
    for entry in index_consistency(codes, vectors, seed=0):
        level, offsets = entry["level"], []
        for prefix in np.unique(codes[:, : level + 1], axis=0):
            siblings = np.unique(codes[(codes[:, :level] == prefix[:level]).all(axis=1), level])
            below, at = ((codes[:, :n] == prefix[:n]).all(axis=1) for n in (level, level + 1))
            step = (vectors[at].mean(dim=0) - vectors[below].mean(dim=0)).numpy()
            if len(siblings) > 1:
                offsets.append((prefix[level], step / np.linalg.norm(step)))
        cosine = [a @ b for i, (x, a) in enumerate(offsets) for y, b in offsets[:i] if x == y]
        assert entry["pairs"] == len(cosine) and entry["cosine"] == pytest.approx(np.mean(cosine), abs=1e-5)
        assert abs(entry["cosine"] - entry["null_mean"]) < 5 * entry["null_sd"]  # these codes mean nothing


def test_only_children_and_equal_vectors_have_no_offset():
    codes = np.array([[0, 0], [1, 0], [2, 0]])
    report = index_consistency(codes, torch.eye(3), seed=0)
    assert report == [{"level": 1, "pairs": 0, "cosine": None, "null_mean": None, "null_sd": None}]
    equal = index_consistency(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), torch.full((4, 2), 0.3), seed=0)
    assert equal[0]["pairs"] == 0


def test_history_overlap_by_hand():
    codes = np.array([[0], [0], [1], [2]])
    catalog = build_catalog(
        4, [[0, 1], [2, 2, 3], [3]]
    )  # targets 1 (code 0 seen), 3 (only code 1 seen), 3 (no history)
    report = history_overlap(catalog.train, codes, catalog.training_counts, seed=0)
    # Interactions 1 1 2 2: codes 0, 1, 2 have a third each, so a random target would meet either history in a third.
    assert report["examples"] == 2
    level = report["levels"][0]
    assert level["observed"] == 0.5 and level["null"] == pytest.approx(1 / 3)
    assert level["difference"] == pytest.approx(0.5 - 1 / 3)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_history_overlap_is_what_counting_gives(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (10, 2))
    codes[rng.random(10) < 0.3, 1] = -1
    catalog = build_catalog(10, [rng.integers(0, 10, rng.integers(1, 6)).tolist() for _ in range(8)])
    counts, train = catalog.training_counts, catalog.train
    for level, entry in enumerate(history_overlap(train, codes, counts, seed=0)["levels"]):
        there = codes[:, level] >= 0
        judged = [i for i in range(8) if len(train.history(i)) and there[train.targets[i]]]
        seen = {i: set(codes[train.history(i), level]) - {-1} for i in judged}
        observed = [codes[train.targets[i], level] in seen[i] for i in judged]
        null = [counts[there & np.isin(codes[:, level], list(seen[i]))].sum() / counts[there].sum() for i in judged]
        assert entry["observed"] == (pytest.approx(np.mean(observed)) if judged else None)
        assert entry["null"] == (pytest.approx(np.mean(null)) if judged else None)


def test_distances_leave_a_warm_item_out_of_its_own_centre():
    vectors = torch.tensor([[0.0, 0], [2, 0], [10, 0], [10, 4]])
    drawn = {"cold": np.array([3]), "warm": np.array([0, 1, 2])}
    found = code_distances(vectors, np.array([0, 0, 1, 1]), np.array([False, False, False, True]), drawn)
    # Warm: 0 and 1 are 2 apart; 2 is alone, and 9 from the centre of the others. Cold: 4 from item 2.
    assert found["cold"] == {"q10": 4.0, "q50": 4.0, "q90": 4.0}
    assert found["warm"]["q50"] == 2.0 and found["warm"]["q90"] == pytest.approx(2 + 0.8 * 7)
    assert found["mean_quantile"] == pytest.approx(2 / 3)


def test_items_without_training_interactions_are_cold():
    catalog, codes = build_catalog(5, [[0, 1], [2, 3]]), np.zeros((5, 2), np.int64)
    vectors = torch.arange(10.0).reshape(5, 2)
    report = cold_start_report(catalog, codes, all_of(vectors), seed=0)
    assert report["items"] == {"cold": 1, "warm": 4}
    drawn = {"cold": np.array([4]), "warm": np.arange(4)}
    assert report["distance"] == code_distances(vectors, codes[:, 0], np.arange(5) == 4, drawn)
    assert cold_start_report(catalog, codes, all_of(None, num_items=5), seed=0)["distance"] is None
