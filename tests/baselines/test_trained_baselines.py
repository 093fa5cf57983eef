"""Neural baselines: they learn, read what they should, train on training sequences alone, and rank exactly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import NETWORKS, NeuralRanker, SASRec, TrainingOptions, trainer
from llmrec.baselines.checks import check_trainable
from llmrec.baselines.counted import Popularity
from llmrec.baselines.examples import Windows, batches, next_items, pad_right, shuffled, training_windows
from llmrec.baselines.trainer import summed_loss, train
from llmrec.configs import EvaluateConfig
from llmrec.configs.evaluate import TRAINED
from llmrec.data.catalog import Catalog
from llmrec.data.side_fields import side_fields
from llmrec.evaluation.metrics import recall
from llmrec.evaluation.protocol import evaluate, per_batch
from llmrec.stages import evaluate as stage
from tests.support.prepared import run_json

CPU = torch.device("cpu")
QUICK = TrainingOptions(learning_rate=3e-3, max_epochs=30, patience=4)
SHORT = TrainingOptions(max_epochs=2)
CAUSAL = ("sasrec", "gru4rec", "sasrec_fields")
every = pytest.mark.parametrize("name", NETWORKS)
causal = pytest.mark.parametrize("name", CAUSAL)
COLOURS = ["red", "red", None, "blue"] * 3
TAGS = [["a", "b"], [], ["b"], ["a", "b", "c"]] * 3


def quick(name, catalog, seed=0, training=QUICK) -> NeuralRanker:
    return NeuralRanker(NETWORKS[name], catalog, seed, "cpu", training, hidden=32, dropout=0.1)


def network(name, max_history=8, **options):
    torch.manual_seed(0)
    return NETWORKS[name].of(split([], [], []), max_history, **{"hidden": 16, **options}).eval()


def split(train, valid, test, **fields) -> Catalog:
    """12 items, and rows of one user each; sequences are item rows, the last of each is the target."""
    rows = [
        {"user_id": f"{i}", "split": name, "history": [f"{row}" for row in items[:-1]], "target": f"{items[-1]}"}
        for name, sequences in (("train", train), ("valid", valid), ("test", test))
        for i, items in enumerate(sequences)
    ]
    ids = [f"{row}" for row in range(12)]
    items = pa.table({"item_id": ids, "title": ids, **(fields or {"colour": COLOURS, "tags": TAGS})})
    schema = pa.schema({**dict.fromkeys(("user_id", "split", "target"), pa.string()), "history": pa.list_(pa.string())})
    return Catalog(items, pa.Table.from_pylist(rows, schema))


def same_weights(one, other) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def batch_of(examples):
    """All examples in one batch, in their order."""
    return next(batches(examples, [np.arange(len(examples.lengths))], CPU))


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


@causal
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_later_items_do_not_change_a_state(name, mode):
    net = getattr(network(name, dropout=0.0), mode)()
    history = torch.tensor([[3, 1, 4, 1, 5, 9]])
    for place in range(1, 6):
        other = history.clone()
        other[0, place:] = torch.tensor([2, 7, 8, 0, 6])[: 6 - place]
        with torch.set_grad_enabled(mode == "train"):  # torch takes another path where it need not
            one, two = (net(items, net.vectors()) for items in (other, history))
        torch.testing.assert_close(one[:, :place], two[:, :place])
        assert not torch.allclose(one[:, place], two[:, place])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_bert4rec_reads_to_both_sides_and_no_padding(mode):
    net = getattr(network("bert4rec", dropout=0.0), mode)()
    vectors, history = net.vectors(), torch.tensor([[3, net.mask, 4, net.padding, net.padding]])

    def state(history, vectors=vectors):
        with torch.set_grad_enabled(mode == "train"):
            return net(history, vectors)[0, 1]

    for place in (0, 2):
        other = history.clone()
        other[0, place] = 7
        assert not torch.allclose(state(other), state(history))
    torch.testing.assert_close(state(history[:, :3]), state(history))
    other_padding = vectors.detach().clone()
    other_padding[net.padding] = torch.arange(16.0)
    torch.testing.assert_close(state(history, other_padding), state(history))


@every
def test_padding_changes_nothing(name):
    net, histories = network(name), [np.array(items) for items in ([3], [1, 4, 1, 5, 9, 2], [6, 5, 3])]
    together = net.last_scores(histories)
    assert together.shape == (3, 12)
    for i, history in enumerate(histories):
        torch.testing.assert_close(together[i], net.last_scores([history])[0])


@causal
def test_the_loss_of_one_pass_is_that_of_its_targets_one_by_one(name, monkeypatch):
    """Law 9: a window of 4 items with 2 of context, and one of 6; 2 + 5 targets, of which 3 are scored at once."""
    monkeypatch.setattr(trainer, "CPU_BLOCK", 3)
    net, pieces = network(name), [(np.array([3, 1, 4, 1]), 2), (np.array([5, 9, 2, 6, 5, 3]), 1)]
    batch = batch_of(next_items(Windows(*pad_right([items for items, _ in pieces]), np.array([2, 1]))))
    targets = [(items[:at], items[at]) for items, context in pieces for at in range(context, len(items))]
    assert batch.targets.tolist() == [target for _, target in targets]
    scores = [net.last_scores([history])[0] for history, _ in targets]
    one_by_one = [-torch.log_softmax(score, 0)[target] for score, (_, target) in zip(scores, targets, strict=True)]
    assert summed_loss(net, batch).item() == pytest.approx(sum(one_by_one).item(), rel=1e-5)


def test_equal_scores_lose_the_log_of_the_number_of_items():
    net = network("sasrec")
    torch.nn.init.zeros_(net.items.weight)
    batch = batch_of(next_items(training_windows([np.array([3, 1, 4])], 8)))
    assert summed_loss(net, batch).item() == pytest.approx(2 * np.log(12))


def test_windows_by_hand():
    """History of 2: windows of 3 items; what an earlier one had as a target is context, and one item is no window."""
    pieces = training_windows([np.array([7]), np.array([8, 9]), np.array([0, 1, 2, 3, 4])], 2)
    assert pieces.items.tolist() == [[8, 9, 0], [0, 1, 2], [2, 3, 4]]
    assert pieces.lengths.tolist() == [2, 3, 3] and pieces.num_context.tolist() == [1, 1, 1]
    examples = next_items(pieces._replace(num_context=np.array([1, 1, 2])))
    assert examples.inputs.tolist() == [[8, 9], [0, 1], [2, 3]] and examples.lengths.tolist() == [1, 2, 2]
    assert examples.supervised.tolist() == [[True, False], [True, True], [False, True]]
    batch = batch_of(examples)
    assert batch.places.tolist() == [0, 2, 3, 5] and batch.targets.tolist() == [9, 1, 2, 4]


def test_hidden_items_by_hand():
    """Of 5 items 2 are hidden, of 2 items 1, or the last one alone; each place equally often; others are read."""
    net = network("bert4rec", hidden_share=0.4)
    pieces = training_windows([np.array([0, 1, 2, 3, 4]), np.array([5, 6])] * 2000, 8)
    found = net.examples(pieces, np.random.default_rng(0))
    items, hidden, counts = pieces.items, found.supervised, found.supervised.sum(axis=1)
    assert set(counts[::2]) == {1, 2} and set(counts[1::2]) == {1}
    assert (counts[::2] == 1).mean() == pytest.approx(1 / 11, abs=0.02)
    assert hidden[::2][counts[::2] == 1].nonzero()[1].tolist() == [4] * (counts[::2] == 1).sum()
    np.testing.assert_allclose(hidden[::2][counts[::2] == 2].mean(axis=0), [0.4] * 5, atol=0.05)
    assert (found.inputs[hidden] == net.mask).all() and (found.targets == items).all()
    assert (found.inputs[1::2, 2:] == net.padding).all() and not hidden[1::2, 2:].any()
    real = np.arange(5) < pieces.lengths[:, None]
    assert (found.inputs == items)[real & ~hidden].all()


def test_a_history_is_followed_by_a_mask_as_in_training():
    net = network("bert4rec")
    hidden = torch.tensor([[3, 1, net.mask]])
    expected = net.scores(net(hidden, net.vectors())[:, 2], net.vectors())
    torch.testing.assert_close(net.last_scores([np.array([3, 1])]), expected)


@every
def test_no_held_out_item_is_in_an_example(name):
    """Items 10 and 11 are in held-out rows alone."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 10, size=length) for length in rng.integers(1, 30, size=40)]
    held_out = [np.append(items, 10 + i % 2) for i, items in enumerate(sequences)]
    catalog = split(sequences, held_out, held_out)
    net = NETWORKS[name].of(catalog, 8)
    for _ in range(3):
        found = net.examples(training_windows(catalog.train.sequences(), 8), rng)
        assert not np.isin(found.inputs[:, : found.lengths.max()], (10, 11)).any()
        assert not np.isin(found.targets[found.supervised], (10, 11)).any()


@settings(derandomize=True, max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=60), batch_size=st.integers(1, 5))
def test_an_epoch_holds_every_window_once(lengths, batch_size):
    found = shuffled(np.array(lengths), batch_size, np.random.default_rng(0))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert max(map(len, found)) <= batch_size


def test_the_first_best_epoch_is_kept_and_patience_ends_training():
    net, qualities, seen = network("gru4rec"), iter([0.1, 0.5, 0.5, 0.4, 0.9]), []

    def quality():
        assert not net.training
        seen.append(net.items.weight.clone())
        return next(qualities)

    log = train(net, [np.array([0, 1, 2])], 8, quality, TrainingOptions(patience=2), 0)
    assert [epoch.quality for epoch in log] == [0.1, 0.5, 0.5, 0.4]
    assert [epoch.supervised for epoch in log] == [2, 4, 6, 8]
    assert torch.equal(net.items.weight, seen[1]) and not torch.equal(seen[1], seen[3])


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
    monkeypatch.setattr(SASRec, "training_options", QUICK)
    flags = ["--catalog", toy[0], "--model", toy[1], "--device", "cpu", "--k", 1]
    result = run_json(capsys, "evaluate", *flags, "--out", tmp_path / "eval", "--baselines", "popularity", "sasrec")
    systems = {name: columns["plain"]["recall@1"] for name, columns in result["systems"].items()}
    assert list(systems) == ["ours", "popularity", "sasrec"]
    assert systems["sasrec"] > systems["popularity"] + 0.5


def test_evaluate_hands_on_its_seed_and_device(monkeypatch, tmp_path):
    assert tuple(NETWORKS) == TRAINED  # what is named without torch
    config = EvaluateConfig(out="o", catalog="c", model="m", seed=7, device="cpu")
    given = []
    monkeypatch.setattr(stage, "baseline", lambda *options: given.append(options) or SimpleNamespace(rank=None, log=[]))
    stage.ranker("sasrec", config, "catalog", 1, tmp_path)
    assert given == [("sasrec", "catalog", 7, "cpu")]


@pytest.mark.parametrize("max_history", [1, 2, 3, 8, 20])
def test_every_item_but_the_first_is_a_target_once(max_history):
    """Also where windows overlap."""
    sequences = [np.arange(0, 11), np.arange(20, 21), np.arange(30, 32), np.arange(40, 49)]
    examples = next_items(training_windows(sequences, max_history))
    found = sorted(examples.targets[examples.supervised].tolist())
    assert found == [item for sequence in sequences for item in sequence[1:].tolist()]
    assert (examples.inputs[examples.supervised] + 1 == examples.targets[examples.supervised]).all()


def test_fields_by_hand():
    """Two fields; a value each, their own value where there is none, and a half or a third of each of several."""
    found = side_fields(split([], [], []))
    assert found.names == ["colour", "tags"] and found.num_values == (2 + 1) + (3 + 1)
    assert found.offsets[:5].tolist() == [0, 3, 5, 7, 11] and len(found.offsets) == 13
    assert found.values[:11].tolist() == [0, 3, 4, 0, 6, 2, 4, 1, 3, 4, 5]
    np.testing.assert_allclose(found.weights[:11], [1, 1 / 2, 1 / 2, 1, 1, 1, 1, 1, 1 / 3, 1 / 3, 1 / 3])


def test_columns_that_are_no_categories_are_left_out():
    own = [f"text of {row}" for row in range(12)]
    others = {"price": [1.5] * 12, "maker": own, "alike": ["x"] * 12, "lat": [1] * 12, "text": COLOURS}
    assert side_fields(split([], [], [], **others, year=[1990, None, 1991] * 4)).names == ["year"]
    assert side_fields(split([], [], [], **others, half=["x"] * 6 + own[6:])).names == ["half"]
    expected = r"no side field \('price' holds double; of 'maker' most .*; of 'alike' .*\).*leave sasrec_fields out"
    with pytest.raises(ValueError, match=expected):
        side_fields(split([], [], [], **others))
    with pytest.raises(ValueError, match=r"it has only \['item_id', 'title', 'lat'\]"):
        check_trainable("sasrec_fields", split([[0, 1]], [[0, 1]], [], lat=[1] * 12))


def test_the_vector_of_an_item_is_its_own_plus_the_means_of_its_fields():
    net = network("sasrec_fields")
    own, values = net.items.weight, net.values.weight
    torch.testing.assert_close(net.vectors()[0], own[0] + values[0] + (values[3] + values[4]) / 2)
    torch.testing.assert_close(net.vectors()[1], own[1] + values[0] + values[6])
    net.train()
    summed_loss(net, batch_of(next_items(training_windows([np.array([0, 2, 3])], 8)))).backward()
    assert net.values.weight.grad.abs().sum(dim=1).min() > 0  # of all items, by the softmax over them


def test_fields_tell_what_is_known_of_items_that_training_seldom_saw():
    """After an item comes one of its own colour. Items 8 to 11 are in one training sequence each, after the others."""
    rng = np.random.default_rng(0)
    colour = np.arange(12) % 2
    train = [rng.permutation(np.flatnonzero(colour[:8] == i % 2))[:3] for i in range(60)]
    train += [np.array([item % 2, item]) for item in range(8, 12)]
    valid = [np.append(items[:1], items[2]) for items in train[:20]]
    catalog = split(train, valid, [], colour=colour.tolist())
    share = {}
    for name in ("sasrec", "sasrec_fields"):
        top = quick(name, catalog).rank([np.array([item]) for item in range(8, 12)], 4).items
        share[name] = (colour[top] == colour[8:12, None]).mean()
    assert share["sasrec_fields"] == 1 > share["sasrec"]
