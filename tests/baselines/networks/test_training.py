"""Training of the networks: windows, batches, loss and the choice of the epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import NETWORKS, TrainingOptions
from llmrec.baselines.networks import trainer
from llmrec.baselines.networks.examples import Windows, next_items, pad_right, shuffled, training_windows
from llmrec.baselines.networks.trainer import summed_loss, train
from tests.support.networks import batch_of, causal, every, network, split


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
@given(count=st.integers(1, 60), batch_size=st.integers(1, 5))
def test_an_epoch_holds_every_window_once(count, batch_size):
    found = shuffled(count, batch_size, np.random.default_rng(0))
    assert sorted(np.concatenate(found).tolist()) == list(range(count))
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


@pytest.mark.parametrize("max_history", [1, 2, 3, 8, 20])
def test_every_item_but_the_first_is_a_target_once(max_history):
    """Also where windows overlap."""
    sequences = [np.arange(0, 11), np.arange(20, 21), np.arange(30, 32), np.arange(40, 49)]
    examples = next_items(training_windows(sequences, max_history))
    found = sorted(examples.targets[examples.supervised].tolist())
    assert found == [item for sequence in sequences for item in sequence[1:].tolist()]
    assert (examples.inputs[examples.supervised] + 1 == examples.targets[examples.supervised]).all()


def test_windows_of_similar_lengths_share_a_pass_without_another_result(monkeypatch):
    """On a CPU a step is divided into passes; the weights after three epochs are those of one pass per step."""
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 12, size=length) for length in rng.integers(2, 9, size=70)]
    weights = []
    for windows in (1000, 3):
        monkeypatch.setattr("llmrec.baselines.networks.trainer.CPU_WINDOWS", windows)
        net = network("gru4rec")
        train(net, sequences, 8, lambda: 0.0, TrainingOptions(max_epochs=3), 0)
        weights.append(net.items.weight.detach().clone())
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)
