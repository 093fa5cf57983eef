"""Trained baselines: they learn, use training sequences alone, and rank exactly."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import NETWORKS, SASRec, by_name
from llmrec.baselines.counted import Popularity
from llmrec.baselines.networks.sasrec import SASRecOptions
from llmrec.configs import EvaluateConfig
from llmrec.configs.evaluate import TRAINED
from llmrec.data.catalog import Catalog
from llmrec.evaluation.metrics import recall
from llmrec.evaluation.protocol import evaluate, per_batch
from llmrec.stages import evaluate as stage
from tests.support.networks import QUICK, SHORT, every, quick, split
from tests.support.prepared import run_json


def same_weights(one, other) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def walks() -> Catalog:
    """Users who walk round 12 items in steps of one: after an item, the next one is certain."""
    walks = [[(start + step) % 12 for step in range(10)] for start in range(12)]
    return split([walk[:8] for walk in walks] * 32, [walk[2:9] for walk in walks], [walk[3:] for walk in walks])


@pytest.fixture(scope="module")
def fitted(walks):
    return {name: quick(name, walks) for name in NETWORKS}


@every
def test_the_next_item_is_learned(fitted, walks, name):
    rows = walks.examples("test")

    def first_hits(ranker):
        return recall(evaluate(per_batch(ranker.rank), rows, 1, "plain", 64).position, 1).mean()

    assert first_hits(fitted[name]) > 0.9
    assert first_hits(Popularity(walks)) < 0.3
    losses = [epoch.loss for epoch in fitted[name].log]
    assert losses[-1] < losses[0] / 2 < np.log(12) / 2


@every
def test_a_seed_gives_the_same_weights_and_leaves_the_global_one_alone(walks, name):
    before = torch.get_rng_state()
    one, again, other = (quick(name, walks, seed, SHORT) for seed in (3, 3, 4))
    assert same_weights(one, again) and not same_weights(one, other)
    assert torch.equal(before, torch.get_rng_state())
    histories = [np.array([3, 4]), np.array([7])]
    np.testing.assert_array_equal(one.rank(histories, 12).items, again.rank(histories, 12).items)


@every
def test_test_examples_change_nothing_and_valid_examples_only_the_epoch(name):
    """Law 1: other test rows, the same weights; other valid targets, the same losses epoch by epoch."""
    rng = np.random.default_rng(0)
    train, valid, test, other = (rng.integers(0, 12, size=(10, 5)) for _ in range(4))
    one = quick(name, split(train, valid, test), training=SHORT)
    assert same_weights(one, quick(name, split(train, valid, other), training=SHORT))
    valid_changed = quick(name, split(train, other, test), training=SHORT)
    assert [epoch.loss for epoch in one.log] == [epoch.loss for epoch in valid_changed.log]
    assert not same_weights(one, quick(name, split(other, valid, test), training=SHORT))


@every
@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    histories=st.lists(st.lists(st.integers(0, 11), max_size=12), min_size=1, max_size=4),
    exclude=st.lists(st.lists(st.integers(0, 11), max_size=12), min_size=4, max_size=4),
    k=st.integers(1, 14),
)
def test_a_ranking_is_the_order_of_all_scores_without_what_is_excluded(fitted, name, histories, exclude, k):
    histories = [np.array(items, dtype=np.int64) for items in histories]
    exclude = [np.array(items, dtype=np.int64) for items in exclude[: len(histories)]]
    ranking = fitted[name].rank(histories, k, exclude)
    for row, (history, blocked) in enumerate(zip(histories, exclude, strict=True)):
        scores = fitted[name].scores([history])[0].numpy().astype(np.float64)
        scores[blocked] = -np.inf
        allowed = min(k, 12 - len(set(blocked.tolist())))
        assert (ranking.items[row, allowed:] == -1).all() and (ranking.scores[row, allowed:] == -np.inf).all()
        returned = ranking.items[row, :allowed]
        assert len(set(returned.tolist())) == allowed and not set(returned) & set(blocked)
        np.testing.assert_allclose(scores[returned], -np.sort(-scores)[:allowed], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ranking.scores[row, :allowed], scores[returned], rtol=1e-4, atol=1e-5)


@every
def test_histories_that_training_never_saw_are_ranked(name):
    ranker = quick(name, split([[0, 1, 1], [2, 1], [5]], [[0, 1, 1]], []), training=SHORT)
    assert ranker.max_history == 2
    scores = ranker.scores([np.array([10, 11]), np.array([9, 10, 11]), np.array([], dtype=np.int64)])
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0], scores[1])  # the oldest item is beyond what validation histories hold
    assert ranker.rank([np.array([], dtype=np.int64)], 1).items.tolist() == [[1]]  # the most popular


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match=r"'valid' examples, by which sasrec chooses.*leave sasrec out"):
        quick("sasrec", split([[0, 1]], [], [[0, 1, 2]]))
    with pytest.raises(ValueError, match=r"no 'valid' examples.*; it has 2 training sequences, none of which has"):
        quick("gru4rec", split([[0], [1]], [], []))
    with pytest.raises(ValueError, match="has 0 training sequences"):
        quick("gru4rec", split([], [[0, 1]], []))


def test_evaluate_trains_a_baseline_that_is_asked_for(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SASRec, "options", functools.partial(SASRecOptions, **QUICK))
    flags = ["--catalog", toy[0], "--model", toy[1], "--device", "cpu", "--k", 1]
    result = run_json(capsys, "evaluate", *flags, "--out", tmp_path / "eval", "--baselines", "popularity", "sasrec")
    systems = {name: columns["plain"]["recall@1"] for name, columns in result["systems"].items()}
    assert list(systems) == ["ours", "popularity", "sasrec"]
    assert systems["sasrec"] > systems["popularity"] + 0.5


def test_evaluate_hands_on_its_seed_and_device(monkeypatch, tmp_path):
    assert tuple(NETWORKS) == TRAINED  # what is named without torch
    config = EvaluateConfig(out="o", catalog="c", model="m", seed=7, device="cpu", baselines=["sasrec"])
    given = []
    monkeypatch.setattr(
        by_name, "baseline", lambda *options: given.append(options) or SimpleNamespace(rank=None, log=[])
    )
    stage.ranker("sasrec", SimpleNamespace(config=config, catalog="catalog"), 1, tmp_path)
    assert given == [("sasrec", "catalog", 7, "cpu")]
