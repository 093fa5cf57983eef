"""The contrast between codes and views: values and gradients by hand, equal items, missing views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmrec.tokenizers.simcit.contrast import duplicates, nt_xent
from tests.support.clustered import points


def contrast(anchors, targets, known=None, temperature=0.5, joint=None, blocks=None):
    """Of one anchor per item; items are all different unless vectors say otherwise."""
    different = torch.eye(len(anchors))
    known = torch.ones(targets.shape[:2], dtype=torch.bool) if known is None else known
    joint, blocks = (different if joint is None else joint), blocks or [different] * targets.shape[1]
    return nt_xent(anchors[:, None], targets, known, joint, blocks, temperature)[0]


def test_contrast_and_gradient_of_two_items_and_two_views_by_hand():
    anchors = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    first, second = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    losses = contrast(anchors, torch.stack([first, second], 1))
    # View 0: logits 2 (own), 0 (other's view), 0 (other's anchor), for both. 2B - 1 = 3 terms, the positive among them.
    agreeing = -2 + math.log(math.exp(2) + 2)
    # View 1: item 0 has 0, 0, 0; item 1 has 2 (own), 2 (other's view, equal), 0 (other's anchor).
    unsure = (math.log(3) + -2 + math.log(2 * math.exp(2) + 1)) / 2
    torch.testing.assert_close(losses, torch.tensor([agreeing, unsure]))
    losses[0].backward()
    # Chance q = 1 / (e^2 + 2) each of the other's view and anchor. For anchor 0, along y: pulled by its own two wrong
    # candidates (2 q) and, as the other's wrong candidate, by item 1 (q); halved for the mean, over .5, over length 2.
    q = 1 / (math.exp(2) + 2)
    torch.testing.assert_close(anchors.grad, torch.tensor([[0.0, 3 * q / 2], [3 * q, 0.0]]))


def test_an_item_twice_in_a_batch_is_no_negative_of_itself():
    anchors, targets = points(3, 4), points(3, 8, seed=1).view(3, 2, 4)
    twice = torch.tensor([0, 1, 2, 0])
    once = contrast(anchors, targets)
    repeated = contrast(
        anchors[twice], targets[twice], joint=targets.flatten(1)[twice], blocks=targets[twice].unbind(1)
    )
    # View 0: item 0 is asked twice, against items 1 and 2, which in turn see it twice.
    u, t = nn.functional.normalize(anchors, dim=1), nn.functional.normalize(targets, dim=2)[:, 0]

    def of(row, weights):
        logits = [(float(u[row] @ t[j]) / 0.5, weights[j]) for j in range(3)]
        logits += [(float(u[row] @ u[j]) / 0.5, weights[j]) for j in range(3) if j != row]
        return -logits[row][0] + math.log(sum(weight * math.exp(logit) for logit, weight in logits))

    assert once[0].item() == pytest.approx(sum(of(row, [1, 1, 1]) for row in range(3)) / 3, rel=1e-5)
    expected = (2 * of(0, [1, 1, 1]) + of(1, [2, 1, 1]) + of(2, [2, 1, 1])) / 4
    assert repeated[0].item() == pytest.approx(expected, rel=1e-5)


def test_duplicates_are_pairs_above_the_cosine():
    vectors = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.0, 0.0]])
    assert duplicates(vectors, torch.arange(4)).nonzero().tolist() == [[0, 1], [1, 0]]
    assert duplicates(vectors, torch.tensor([3, 1])).nonzero().tolist() == [[1, 0]]


def test_a_view_that_misses_an_item_neither_asks_for_it_nor_offers_it():
    anchors = points(4, 5).requires_grad_()
    targets = points(4, 10, seed=1).view(4, 2, 5).requires_grad_()
    known = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    losses = contrast(anchors, targets, known)
    losses.sum().backward()
    assert targets.grad[1, 1].tolist() == targets.grad[3, 1].tolist() == [0] * 5 and targets.grad[0, 1].any()
    changed = targets.detach().clone()
    changed[[1, 3], 1] = 7
    torch.testing.assert_close(contrast(anchors, changed, known), losses, rtol=0, atol=0)
    assert contrast(anchors, targets, known & torch.tensor([True, False]))[1] == 0
