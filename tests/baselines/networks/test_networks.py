"""The networks: what each state reads, padding, masks and side fields."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.baselines.checks import check_trainable
from llmrec.baselines.networks.examples import next_items, training_windows
from llmrec.baselines.networks.trainer import summed_loss
from llmrec.data.side_fields import side_fields
from tests.support.networks import COLOURS, batch_of, causal, every, network, quick, split


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


def test_a_history_is_followed_by_a_mask_as_in_training():
    net = network("bert4rec")
    hidden = torch.tensor([[3, 1, net.mask]])
    expected = net.scores(net(hidden, net.vectors())[:, 2], net.vectors())
    torch.testing.assert_close(net.last_scores([np.array([3, 1])]), expected)


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


def test_side_fields_help_items_that_are_rare_in_training():
    """After an item comes one of its own colour. Items 8 to 11 are in one training sequence each, after the others."""
    rng = np.random.default_rng(0)
    colour = np.arange(12) % 2
    train = [rng.permutation(np.flatnonzero(colour[:8] == i % 2))[:3] for i in range(60)]
    train += [np.array([item % 2, item]) for item in range(8, 12)]
    valid = [np.append(items[:1], items[2]) for items in train[:20]]
    catalog = split(train, valid, [], colour=colour.tolist())
    mass = {}
    for name in ("sasrec", "sasrec_fields"):
        probabilities = quick(name, catalog).scores([np.array([item]) for item in range(8, 12)]).softmax(dim=1).numpy()
        mass[name] = (probabilities * (colour == colour[8:12, None])).sum(axis=1).mean()
    assert mass["sasrec_fields"] > 0.95 > mass["sasrec"] + 0.1


def test_options_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="hidden is 9; 2 heads need a multiple of 2"):
        network("sasrec", hidden=9)
    with pytest.raises(ValueError, match="dropout is 2; at most 1 is allowed"):
        network("gru4rec", dropout=2)
