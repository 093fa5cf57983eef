"""Rankers that were saved: the same answers again, rankings by them, and no other catalogue or weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmrec.baselines import best_items
from llmrec.baselines.counted import COUNTED_BASELINES
from llmrec.baselines.mixture import Mixture
from llmrec.baselines.networks import NETWORKS
from llmrec.baselines.queries import queries_of
from llmrec.baselines.taught import RANKER, TENSORS, Taught, load_ranker, load_teacher
from llmrec.runtime.manifest import adopt
from tests.support.networks import CPU, SHORT, quick, split

WALKS = [[start, (start + 1) % 10, (start + 3) % 10, (start + 4) % 10] for start in range(10)]
HISTORIES = [np.array(items, dtype=np.int64) for items in ([3, 4], [], [7, 8, 0], [0, 1, 2, 3, 4, 5, 6, 7])]
NAMES = [*COUNTED_BASELINES, *NETWORKS]


@pytest.fixture(scope="module")
def catalog():
    return split(WALKS, [[*walk, (walk[-1] + 1) % 10] for walk in WALKS], [])


@pytest.fixture(scope="module")
def rankers(catalog):
    fitted = {name: kind(catalog, power=2.0) for name, kind in COUNTED_BASELINES.items()}
    return fitted | {name: quick(name, catalog, training=SHORT) for name in NETWORKS}


def saved(path, kept: Taught, catalog):
    path.mkdir()
    kept.save(path, catalog)
    adopt(path, "teach")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_ranker_that_was_saved_answers_as_before(tmp_path, catalog, rankers, name):
    facts = {"valid": {"plain": {"ndcg@10": 0.5}}, "log": [{"loss": 1, "quality": 2, "supervised": 3, "seconds": 4}]}
    before = Taught(rankers[name], CPU, exclude_seen=True, facts=facts)
    after = load_ranker(saved(tmp_path / "kept", before, catalog), catalog, CPU)
    queries = queries_of(HISTORIES, CPU)
    assert torch.equal(after.probabilities(queries, True), before.probabilities(queries, True))
    assert after.exclude_seen and after.facts == facts and after.log[0].quality == 2
    assert after.ranker.chosen == rankers[name].chosen


@pytest.mark.parametrize("name", NAMES)
def test_a_ranking_is_the_order_of_the_probabilities(catalog, rankers, name, monkeypatch):
    kept = Taught(rankers[name], CPU)
    probabilities = kept.probabilities(queries_of(HISTORIES, CPU), False).numpy()
    monkeypatch.setattr(best_items, "BATCH", 3)
    ranked = kept.rank(HISTORIES, 14, [np.array([3, 5], dtype=np.int64)] * 4)
    assert (ranked.items[:, 10:] == -1).all() and np.isneginf(ranked.scores[:, 10:]).all()
    for row, items in enumerate(ranked.items[:, :10]):
        assert sorted(items.tolist()) == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
        np.testing.assert_allclose(ranked.scores[row, :10], np.log(probabilities[row, items]), rtol=1e-5)
        assert (np.diff(ranked.scores[row, :10]) <= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_best_items_are_those_of_the_ranker_itself(rankers, name):
    """Up to the order of equal probabilities."""
    kept = Taught(rankers[name], CPU)
    probabilities = kept.probabilities(queries_of(HISTORIES, CPU), False).numpy()
    of_both = [
        np.take_along_axis(probabilities, ranker.rank(HISTORIES, 2).items, 1) for ranker in (kept, rankers[name])
    ]
    np.testing.assert_allclose(of_both[0], of_both[1], rtol=1e-6)


def test_a_mixture_excludes_in_each_member_before_it_mixes(tmp_path, catalog, rankers):
    members = [Taught(rankers[name], CPU, exclude_seen=name == "markov") for name in ("markov", "repeat")]
    mixture, queries = Mixture(members, [0.25, 0.75]), queries_of(HISTORIES, CPU)
    parts = [member.probabilities(queries, True) for member in members]
    torch.testing.assert_close(mixture.probabilities(queries, True), 0.25 * parts[0] + 0.75 * parts[1])
    warm = (0.25 * parts[0] + 0.75 * parts[1]) ** 0.5
    torch.testing.assert_close(mixture.probabilities(queries, True, 2.0), warm / warm.sum(dim=1, keepdim=True))
    ranked = Taught(mixture, CPU).rank(HISTORIES[:1], 1, HISTORIES[:1])
    assert ranked.scores[0, 0] == pytest.approx(float((0.25 * parts[0] + 0.75 * parts[1])[0].max().log()), rel=1e-5)

    after = load_ranker(saved(tmp_path / "kept", Taught(mixture, CPU), catalog), catalog, CPU)
    assert torch.equal(after.probabilities(queries, False), mixture.probabilities(queries, False))
    assert [member.exclude_seen for member in after.ranker.members] == [True, False]


def test_several_teachers_are_averaged(tmp_path, catalog, rankers):
    paths = [
        saved(tmp_path / name, Taught(rankers[name], CPU, name != "repeat"), catalog) for name in ("sasrec", "repeat")
    ]
    queries = queries_of(HISTORIES, CPU)
    both = load_teacher([str(path) for path in paths], catalog, CPU)
    one, other = (load_teacher([str(path)], catalog, CPU) for path in paths)
    expected = (one.probabilities(queries, False) + other.probabilities(queries, False)) / 2
    torch.testing.assert_close(both.probabilities(queries, False), expected)
    assert one.exclude_seen and not other.exclude_seen and not both.exclude_seen
    with pytest.raises(ValueError, match="give one or more different directories"):
        load_teacher([], catalog, CPU)
    with pytest.raises(ValueError, match="give one or more different directories"):
        load_teacher([str(paths[0]), f"{paths[0]}/."], catalog, CPU)


def test_another_catalogue_is_refused(tmp_path, catalog, rankers):
    path = saved(tmp_path / "kept", Taught(rankers["markov"], CPU), catalog)
    catalog = split(WALKS, [], [])
    catalog.source = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was taught on another catalogue.*Run `llmrec teach` on this one"):
        load_ranker(path, catalog, CPU)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, catalog, rankers):
    (tmp_path / "kept").mkdir()
    kept = Taught(rankers["gru4rec"], CPU)
    kept.save(tmp_path / "kept", catalog)
    weights = load_file(tmp_path / "kept" / TENSORS)
    weights["items.weight"][3, 1] = torch.nan
    save_file(weights, tmp_path / "kept" / TENSORS)
    adopt(tmp_path / "kept", "teach")
    with pytest.raises(ValueError, match=r"holds no whole ranker: items\.weight holds values that are not finite"):
        load_ranker(tmp_path / "kept", catalog, CPU)

    (tmp_path / "again").mkdir()
    broken = quick("gru4rec", catalog, training=SHORT)
    broken.network.items.weight.data[0] = torch.inf
    with pytest.raises(ValueError, match=r"items\.weight holds values that are not finite; gru4rec: its training"):
        Taught(broken, CPU).save(tmp_path / "again", catalog)


def test_what_is_no_whole_ranker_is_refused(tmp_path, catalog, rankers):
    path = saved(tmp_path / "kept", Taught(rankers["sasrec"], CPU), catalog)
    with pytest.raises(ValueError, match="is not a directory that llmrec finished"):
        load_ranker(tmp_path / "absent", catalog, CPU)
    settings = json.loads((path / RANKER).read_text())
    for name, changed in ({"ranker": "sasrek"}, {"options": {**settings["options"], "hidden": 64}}), ({}, {}):
        content = {**settings, **name, **changed} if name else {"ranker": "sasrec"}
        other = tmp_path / f"broken-{len(content)}"
        other.mkdir()
        (other / TENSORS).write_bytes((path / TENSORS).read_bytes())
        (other / RANKER).write_text(json.dumps(content))
        adopt(other, "teach")
        with pytest.raises(ValueError, match="holds no whole ranker"):
            load_ranker(other, catalog, CPU)
