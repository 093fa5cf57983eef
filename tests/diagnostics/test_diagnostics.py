"""Diagnostics of codes: numbers worked out by hand, and the identity of prefix-conditional entropies."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec import diagnostics
from llmrec.data.catalog import Catalog
from llmrec.diagnostics import churn, collision_report, level_report
from llmrec.diagnostics.codes import gini, miller_madow_bits, tree_report
from llmrec.diagnostics.tables import tables
from llmrec.sid.groups import entropy_bits
from llmrec.sid.table import SidTable
from llmrec.views import ItemViews, View


def build_catalog(num_items: int, sequences: list[list[int]], **fields) -> Catalog:
    """Items with their fields, and training rows of the sequences; the held-out rows name item 0 alone."""
    ids = [f"item-{row}" for row in range(num_items)]
    split = pa.schema(
        [("user_id", pa.string()), ("split", pa.string()), ("history", pa.list_(pa.string())), ("target", pa.string())]
    )
    rows = [
        {"user_id": f"{user}", "split": name, "history": [ids[i] for i in history], "target": ids[target]}
        for user, (*items, last) in enumerate(sequences)
        for name, history, target in (("train", items, last), ("valid", [0], 0), ("test", [0, 0], 0))
    ]
    return Catalog(
        pa.table({"item_id": ids, "title": [f"title {i}" for i in ids], **fields}), pa.Table.from_pylist(rows, split)
    )


def full_report(catalog: Catalog, codes: np.ndarray, vectors: np.ndarray | None, text: bool = False) -> dict:
    """Report of codes that are kept as they are; each reconstruction is the mean vector of the first code's items."""
    table = SidTable(catalog.item_ids, codes)
    if vectors is None:
        return diagnostics.report(catalog, None, table, codes, table.level_sizes, None, None, 0)
    x = torch.from_numpy(vectors)
    mean = torch.stack([x[codes[:, 0] == code].mean(dim=0) for code in codes[:, 0]])
    views = ItemViews({"text" if text else "other": View(vectors, ~vectors.any(axis=1))})
    return diagnostics.report(
        catalog, views, table, codes, table.level_sizes, lambda rows: x[rows], lambda rows: mean[rows], 0
    )


def test_collisions_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 0], [1, 1], [1, 2], [1, 2], [2, 0], [3, 0]])  # 5 distinct, 5 items share
    report = collision_report(codes, np.array([4, 0, 0, 2, 1, 0, 0, 1]))
    # Four interactions in a bucket of three, one in a bucket of two, three in buckets of one.
    assert report["expected_bucket"] == pytest.approx((4 * 3 + 1 * 2 + 3 * 1) / 8)
    assert (report["collision_rate"], report["shared_items"], report["max_bucket"]) == (3 / 8, 5 / 8, 3)
    # Counts 1 1 1 2 3 with n = 5 and sum 8: 6/5 - 2 (5 + 4 + 3 + 2*2 + 3) / (5*8).
    assert report["gini"] == pytest.approx(6 / 5 - 2 * 19 / 40)


def test_expected_bucket_is_unknown_without_interactions():
    codes = np.array([[0], [0]])
    assert collision_report(codes)["expected_bucket"] is None
    assert collision_report(codes, np.zeros(2, int))["expected_bucket"] is None


@settings(derandomize=True, max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_gini_is_the_mean_difference_of_all_pairs(counts):
    x = np.array(counts)
    pairs = np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean())
    assert gini(x) == pytest.approx(pairs, abs=1e-12)


def test_fixture_has_its_one_collision(sid_table):
    report = collision_report(sid_table.codes(range(12)))
    assert (report["collision_rate"], report["shared_items"]) == (pytest.approx(1 / 12), 2 / 12)
    assert report["max_bucket"] == 2


def test_levels_by_hand():
    # Level 0: codes 0 0 1 1 of four, one bit. Level 1 given level 0: one bit under 0, none under 1; half a bit.
    table = SidTable(list("abcd"), np.array([[0, 0], [0, 1], [1, 1], [1, 1]]), level_sizes=[4, 2])
    first, second = level_report(table)
    assert (first["used"], first["usage"], first["entropy_bits"], first["perplexity_share"]) == (2, 0.5, 1.0, 0.5)
    assert (first["conditional_entropy_bits"], first["kl_bits"]) == (1.0, 1.0)
    assert second["conditional_entropy_bits"] == pytest.approx(0.5)
    assert second["entropy_bits"] == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))
    assert second["kl_bits"] == pytest.approx(1 - second["entropy_bits"])
    assert [(of["branching_mean"], of["branching_max"]) for of in (first, second)] == [(2.0, 2), (1.5, 2)]
    assert first["training"] == dict.fromkeys(first["training"])


def test_levels_by_training_interactions_by_hand():
    table = SidTable(list("abc"), np.array([[0, 0], [0, 1], [1, 1]]), level_sizes=[2, 2])
    first, second = (of["training"] for of in level_report(table, np.array([4, 4, 0])))
    # All interactions have first code 0; below it, two codes of four interactions each.
    assert (first["entropy_bits"], first["perplexity_share"], first["kl_bits"]) == (0.0, 0.5, 1.0)
    assert first["conditional_entropy_bits"] == 0.0
    assert second["entropy_bits"] == 1.0
    assert second["conditional_entropy_bits"] == pytest.approx(1 + 1 / (2 * 8 * np.log(2)))


def test_miller_madow_is_nearer_the_truth_than_plug_in():
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(0, 64, 200), minlength=64) for _ in range(50)]
    plug_in, corrected = (np.mean([of(counts) for counts in draws]) for of in (entropy_bits, miller_madow_bits))
    assert abs(corrected - 6) < 0.05 < 6 - plug_in


def test_tree_by_hand():
    # Leaves 0-0 and 0-1 are siblings; 1-0 is alone below 1; 2 ends after one code, the only leaf there.
    table = SidTable(list("abcd"), np.array([[0, 0], [0, 1], [1, 0], [2, -1]]), level_sizes=[4, 2])
    assert tree_report(table) == {"fill_ratio": 4 / 8, "leaf_singletons": 2 / 4}
    full = SidTable(list("abcd"), np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert tree_report(full) == {"fill_ratio": 1.0, "leaf_singletons": 0.0}


def test_the_end_of_a_shorter_sid_is_no_code():
    table = SidTable(list("abc"), np.array([[0, 0], [0, 1], [1, -1]]), level_sizes=[2, 2])
    second = level_report(table)[1]
    assert (second["used"], second["entropy_bits"], second["branching_mean"]) == (2, 1.0, 2.0)
    assert sum(level["conditional_entropy_bits"] for level in level_report(table)) == pytest.approx(np.log2(3))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(codes=hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(0, 3)))
def test_conditional_entropies_of_distinct_sids_add_up_to_log2_of_the_items(codes):
    ordinal = [(codes[:row] == codes[row]).all(axis=1).sum() for row in range(len(codes))]
    table = SidTable([str(row) for row in range(len(codes))], np.column_stack([codes, ordinal]))
    levels = level_report(table)
    total = sum(level["conditional_entropy_bits"] for level in levels)
    assert total == pytest.approx(np.log2(len(codes)), abs=1e-9)
    assert all(-1e-9 <= level["conditional_entropy_bits"] <= level["entropy_bits"] + 1e-9 for level in levels)


def test_entropy_of_one_code_is_zero():
    assert entropy_bits(np.array([0, 7, 0])) == 0


def test_churn_by_hand():
    a = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    b = np.array([[0, 0, 0], [0, 2, 0], [2, 0, -1], [1, 1, -1]])
    assert churn(a, b) == churn(b, a) == {"levels": [1 / 4, 1 / 4, 2 / 4], "sid": 3 / 4}
    assert churn(a, a) == {"levels": [0.0, 0.0], "sid": 0.0}
    with pytest.raises(ValueError, match="4 and 3 were given"):
        churn(a, b[:3])


@settings(derandomize=True, max_examples=30, deadline=None)
@given(
    codes=hnp.arrays(np.int64, st.tuples(st.integers(1, 14), st.integers(1, 3)), elements=st.integers(0, 2)),
    kind=st.sampled_from(["none", "random", "missing", "equal"]),
    users=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_a_report_never_fails_and_is_json_without_nan(codes, kind, users, seed):
    rng, num_items = np.random.default_rng(seed), len(codes)
    sequences = [rng.integers(0, num_items, rng.integers(1, 5)).tolist() for _ in range(users)]
    catalog = build_catalog(num_items, sequences, brand=[f"brand {i % 2}" for i in range(num_items)])
    vectors = {"random": rng.normal(size=(num_items, 3)), "missing": np.zeros((num_items, 3))}
    vectors["equal"] = np.ones((num_items, 3))
    report = full_report(catalog, codes, None if kind == "none" else vectors[kind].astype(np.float32), text=True)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    diagnostics.show(report)
    for neighbours in (report["neighbours"]["behaviour"], report["neighbours"]["text"]):
        rates = [] if neighbours is None else [neighbours[name] for name in ("vectors", "quantised", "prefix")]
        assert all(rate is None or 0 <= rate <= 1 + 1e-6 for rate in rates)


def test_held_out_rows_change_nothing(catalog):
    codes = np.arange(12).reshape(12, 1) % 4
    without = Catalog(catalog.items, catalog._split.filter(pa.compute.equal(catalog._split["split"], "train")))
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    assert full_report(catalog, codes, vectors) == full_report(without, codes, vectors)


@pytest.fixture
def report() -> dict:
    """Of 40 items with vectors, a category and behaviour; the last three items have no interactions."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (40, 3))
    catalog = build_catalog(
        40, rng.integers(0, 37, (30, 6)).tolist(), genres=[["drama", "war"][: 1 + i % 2] for i in range(40)]
    )
    return full_report(catalog, codes, rng.normal(size=(40, 8)).astype(np.float32), text=True)


def test_a_judgement_and_one_table_are_printed_in_80_columns(report, capsys):
    diagnostics.show({**report, "notes": ["a note of the stage"]})
    shown = capsys.readouterr().out
    titles = [part.title for part in tables(report)]
    assert [title for title in titles if title in shown] == ["Codes per level"] and len(titles) > 5
    assert "a note of the stage" in shown and "share their semantic ID with another item" in shown
    table = shown[shown.index("Codes per level") :]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80


def test_comparison_has_every_report_in_every_line(report, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    short = {**report, "levels": report["levels"][:1], "reconstruction": None}
    compared = diagnostics.compare({"one": report, "two": short})
    assert compared["levels"] == {"one": 3, "two": 1}
    assert compared["reconstruction cosine"] == {"one": report["reconstruction"]["cosine"], "two": None}
    assert compared["perplexity / codes, level 2"] == {"one": report["levels"][2]["perplexity_share"], "two": None}
    consistency = report["index_consistency"][0]
    above = consistency["cosine"] - consistency["null_mean"]
    assert compared["index consistency above null, level 1"] == {"one": above, "two": above}
    assert not any(set(values.values()) == {None} for values in compared.values())
    assert json.loads(json.dumps(compared, allow_nan=False)) == compared
    diagnostics.show_comparison(compared)
    shown = capsys.readouterr().out
    assert "one" in shown and "two" in shown and f"{report['reconstruction']['cosine']:.4f}" in shown


def test_reports_of_different_catalogues_are_not_compared(report):
    with pytest.raises(ValueError, match=r"different sizes \({'a': 40, 'b': 41}\)"):
        diagnostics.compare({"a": report, "b": {**report, "num_items": 41}})
