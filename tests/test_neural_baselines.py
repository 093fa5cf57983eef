"""Neural baselines: they learn, read from left to right, train on training sequences alone, and rank exactly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from extended import write_toy_catalog
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import run_json

from llmrec.catalog import Catalog
from llmrec.configs import EvaluateConfig
from llmrec.evaluation.baselines import TRAINED, Popularity
from llmrec.evaluation.metrics import recall
from llmrec.evaluation.neural import NETWORKS, NeuralRanker, Training
from llmrec.evaluation.neural import ranker as neural_ranker
from llmrec.evaluation.neural.network import last_states
from llmrec.evaluation.neural.trainer import Window, batches, summed_loss, train, training_windows
from llmrec.evaluation.protocol import evaluate, per_batch
from llmrec.stages import evaluate as stage

CPU = torch.device("cpu")
QUICK = Training(learning_rate=3e-3, max_epochs=30, patience=4)
SHORT = Training(max_epochs=2)
both = pytest.mark.parametrize("name", NETWORKS)


def quick(name, catalog, seed=0, training=QUICK) -> NeuralRanker:
    return NeuralRanker(NETWORKS[name], catalog, seed, "cpu", training, hidden=32, dropout=0.1)


def network(name, max_history=8, **options):
    torch.manual_seed(0)
    return NETWORKS[name](12, max_history, **{"hidden": 16, **options}).eval()


def split(train, valid, test) -> Catalog:
    """12 items, and rows of one user each; sequences are item rows, the last of each is the target."""
    rows = [
        {"user_id": f"{i}", "split": name, "history": [f"{row}" for row in items[:-1]], "target": f"{items[-1]}"}
        for name, sequences in (("train", train), ("valid", valid), ("test", test))
        for i, items in enumerate(sequences)
    ]
    ids = [f"{row}" for row in range(12)]
    empty = pa.table({"item_id": ids, "title": ids})
    return Catalog(empty, pa.Table.from_pylist(rows))


def same_weights(one, other) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> Catalog:
    """Users who walk round 12 items in steps of one: after an item, the next one is certain."""
    return write_toy_catalog(tmp_path_factory.mktemp("walks") / "catalog")


@pytest.fixture(scope="module")
def fitted(walks):
    return {name: quick(name, walks) for name in NETWORKS}


@both
def test_the_next_item_is_learned(fitted, walks, name):
    rows = walks.rows("test")

    def first_hits(ranker):
        return recall(evaluate(per_batch(ranker.rank), rows, 1, "plain", 64).position, 1).mean()

    assert first_hits(fitted[name]) > 0.9
    assert first_hits(Popularity(walks)) < 0.3
    losses = [epoch.loss for epoch in fitted[name].log]
    assert losses[0] == pytest.approx(np.log(12), abs=0.3) and losses[-1] < losses[0] / 2


@both
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_later_items_do_not_change_a_state(name, mode):
    net = getattr(network(name, dropout=0.0), mode)()
    history = torch.tensor([[3, 1, 4, 1, 5, 9]])
    for place in range(1, 6):
        other = history.clone()
        other[0, place:] = torch.tensor([2, 7, 8, 0, 6])[: 6 - place]
        torch.testing.assert_close(net(other)[:, :place], net(history)[:, :place])
        assert not torch.allclose(net(other)[:, place], net(history)[:, place])


@both
def test_padding_changes_nothing(name):
    net, histories = network(name), [np.array(items) for items in ([3], [1, 4, 1, 5, 9, 2], [6, 5, 3])]
    together = last_states(net, histories, CPU)
    for i, history in enumerate(histories):
        torch.testing.assert_close(together[i], last_states(net, [history], CPU)[0])


@both
def test_the_loss_of_one_pass_is_that_of_its_targets_one_by_one(name):
    """Law 9: a window of 4 items with 2 of context, and one of 6; 2 + 5 targets."""
    net, batch = network(name), [Window(np.array([3, 1, 4, 1]), 2), Window(np.array([5, 9, 2, 6, 5, 3]), 1)]
    loss, count = summed_loss(net, batch)
    targets = [
        (window.items[:at], window.items[at]) for window in batch for at in range(window.num_context, len(window.items))
    ]
    scores = [net.scores(last_states(net, [history], CPU))[0] for history, _ in targets]
    one_by_one = [-torch.log_softmax(score, 0)[target] for score, (_, target) in zip(scores, targets, strict=True)]
    assert count == len(targets) == 7
    assert loss.item() == pytest.approx(sum(one_by_one).item(), rel=1e-5)


def test_equal_scores_lose_the_log_of_the_number_of_items():
    net = network("sasrec")
    torch.nn.init.zeros_(net.items.weight)
    loss, count = summed_loss(net, [Window(np.array([3, 1, 4]), 1)])
    assert loss.item() == pytest.approx(2 * np.log(12)) and count == 2


def test_windows_by_hand():
    """History of 2: windows of 3 items; what an earlier one had as a target is context, and one item is no window."""
    pieces = training_windows([np.array([7]), np.array([8, 9]), np.array([0, 1, 2, 3, 4])], 2)
    assert [(piece.items.tolist(), piece.num_context) for piece in pieces] == [
        ([8, 9], 1),
        ([0, 1, 2], 1),
        ([2, 3, 4], 1),
    ]


@settings(derandomize=True, max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=60), batch_size=st.integers(1, 5))
def test_an_epoch_holds_every_window_once(lengths, batch_size):
    pieces = [Window(np.full(length, i), 1) for i, length in enumerate(lengths)]
    found = [window.items[0] for batch in batches(pieces, batch_size, np.random.default_rng(0)) for window in batch]
    assert sorted(found) == list(range(len(lengths)))


def test_the_first_best_epoch_is_kept_and_patience_ends_training():
    net, qualities, seen = network("gru4rec"), iter([0.1, 0.5, 0.5, 0.4, 0.9]), []

    def quality():
        assert not net.training
        seen.append(net.items.weight.clone())
        return next(qualities)

    log = train(net, [np.array([0, 1, 2])], 8, quality, Training(patience=2), 0, "test")
    assert [epoch.quality for epoch in log] == [0.1, 0.5, 0.5, 0.4]
    assert [epoch.supervised for epoch in log] == [2, 4, 6, 8]
    assert torch.equal(net.items.weight, seen[1]) and not torch.equal(seen[1], seen[3])


@both
def test_a_seed_gives_the_same_weights_and_leaves_the_global_one_alone(walks, name):
    before = torch.get_rng_state()
    one, again, other = (quick(name, walks, seed, SHORT) for seed in (3, 3, 4))
    assert same_weights(one, again) and not same_weights(one, other)
    assert torch.equal(before, torch.get_rng_state())


@both
def test_test_rows_change_nothing_and_valid_rows_only_the_epoch(name):
    """Law 1: other test rows, the same weights; other valid targets, the same losses epoch by epoch."""
    rng = np.random.default_rng(0)
    train, valid, test, other = (rng.integers(0, 12, size=(10, 5)) for _ in range(4))
    one = quick(name, split(train, valid, test), training=SHORT)
    assert same_weights(one, quick(name, split(train, valid, other), training=SHORT))
    valid_changed = quick(name, split(train, other, test), training=SHORT)
    assert [epoch.loss for epoch in one.log] == [epoch.loss for epoch in valid_changed.log]
    assert not same_weights(one, quick(name, split(other, valid, test), training=SHORT))


@both
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


@both
def test_histories_that_training_never_saw_are_ranked(name):
    ranker = quick(name, split([[0, 1, 1], [2, 1], [5]], [[0, 1, 1]], []), training=SHORT)
    assert ranker.max_history == 2
    scores = ranker.scores([np.array([10, 11]), np.array([9, 10, 11]), np.array([], dtype=np.int64)])
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0], scores[1])  # the oldest item is beyond what validation histories hold
    assert ranker.rank([np.array([], dtype=np.int64)], 1).items.tolist() == [[1]]  # the most popular


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match=r"'valid' rows, by which sasrec chooses.*leave sasrec out"):
        quick("sasrec", split([[0, 1]], [], [[0, 1, 2]]))
    with pytest.raises(ValueError, match=r"no 'valid' rows.*; it has 2 training sequences, none with two items"):
        quick("gru4rec", split([[0], [1]], [], []))
    with pytest.raises(ValueError, match="has 0 training sequences"):
        quick("gru4rec", split([], [[0, 1]], []))


def test_evaluate_trains_a_baseline_that_is_asked_for(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(neural_ranker, "Training", lambda: QUICK)
    flags = ["--catalog", toy[0], "--model", toy[1], "--bootstrap-samples", 10, "--device", "cpu", "--k", 1]
    result = run_json(capsys, "evaluate", *flags, "--out", tmp_path / "eval", "--baselines", "popularity", "sasrec")
    systems = {name: columns["plain"]["recall@1"] for name, columns in result["systems"].items()}
    assert list(systems) == ["ours", "popularity", "sasrec"]
    assert systems["sasrec"] > systems["popularity"] + 0.5


def test_evaluate_hands_on_its_seed_and_device(monkeypatch):
    assert tuple(NETWORKS) == TRAINED  # what is named without torch
    config = EvaluateConfig(out="o", catalog="c", model="m", seed=7, device="cpu")
    given = []
    monkeypatch.setattr(stage, "baseline", lambda *options: given.append(options) or SimpleNamespace(rank=None))
    stage.ranker("sasrec", config, "catalog", 1)
    assert given == [("sasrec", "catalog", 7, "cpu")]
