"""The losses by hand: which negatives count, and when a sample says what all items say."""

from __future__ import annotations

import pytest
import torch

from llmrec.baselines import NETWORKS
from llmrec.baselines.networks.examples import next_items, training_windows
from llmrec.baselines.networks.losses import loss_of, sampled_softmax, softmax, softmax_against
from llmrec.baselines.networks.trainer import summed_loss
from tests.support.networks import batch_of, every, network


def given(name):
    """A network with vectors of size 1, so that logits differ; states, targets and vectors."""
    net = network(name)
    torch.nn.init.normal_(net.items.weight)
    if name == "bert4rec":
        torch.nn.init.normal_(net.bias)
    return net, torch.randn(3, 16), torch.tensor([4, 0, 11]), net.vectors()


@every
def test_with_all_items_as_negatives_it_is_the_softmax_over_all(name):
    net, states, targets, vectors = given(name)
    everything = torch.arange(12).expand(3, 12)
    found = softmax_against(net, states, targets, vectors, everything)
    torch.testing.assert_close(found, softmax(net, states, targets, vectors))


@every
def test_a_negative_competes_and_the_target_itself_does_not(name):
    net, states, targets, vectors = given(name)
    negatives = torch.tensor([[4, 7, 7], [0, 0, 0], [2, 11, 3]])
    logits = net.scores(states, vectors)
    first = torch.logsumexp(logits[0, [4, 7, 7]], 0) - logits[0, 4]  # drawn twice, it counts twice
    third = torch.logsumexp(logits[2, [11, 2, 3]], 0) - logits[2, 11]
    torch.testing.assert_close(softmax_against(net, states, targets, vectors, negatives), first + third)


def test_negatives_are_uniform_items_and_each_place_draws_its_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "llmrec.baselines.networks.losses.softmax_against", lambda *given: drawn.append(given[-1]) or given[1].sum()
    )
    net, states, targets, vectors = given("bert4rec")
    for _ in range(20):
        sampled_softmax(net, states, targets, vectors, 600)
    found = torch.stack(drawn)  # 14 vectors, of which the mask and the padding are no items
    assert found.shape == (20, 3, 600)
    assert not (found[:, 0] == found[:, 1]).all() and not (found[0] == found[1]).all()
    assert (found.flatten().bincount() / found.numel()).tolist() == pytest.approx([1 / 12] * 12, abs=0.01)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec"])
def test_the_option_reaches_the_loss(name):
    net = network(name)
    torch.nn.init.zeros_(net.items.weight)
    batch = batch_of(next_items(training_windows([torch.tensor([3, 1, 4]).numpy()], 8)))
    kind = NETWORKS[name].options
    assert summed_loss(net, batch, loss_of(kind())).item() == pytest.approx(2 * torch.tensor(12.0).log().item())
    torch.manual_seed(0)
    one = summed_loss(net, batch, loss_of(kind(loss="sampled_softmax", negatives=1))).item()
    assert one in (pytest.approx(count * torch.tensor(2.0).log().item()) for count in (0, 1, 2))
    many = summed_loss(net, batch, loss_of(kind(loss="sampled_softmax"))).item()  # 256, of which a twelfth is no rival
    assert many == pytest.approx(2 * torch.tensor(1 + 256 * 11 / 12).log().item(), abs=0.1)


@every
def test_negatives_without_a_sample_are_refused(name):
    with pytest.raises(ValueError, match="negatives is 5, but loss is softmax, which scores all items"):
        NETWORKS[name].options(negatives=5)
    with pytest.raises(ValueError, match="loss is 'bce'"):
        NETWORKS[name].options(loss="bce")
