"""Queries by hand: what lies before an answer, what is excluded, what temperature does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.baselines.queries import Queries, before, in_proportion, normalised, popularity, queries_of, without_seen

CPU = torch.device("cpu")
# Two windows of three places over four items; asked at the start, in the middle and at the end of them.
QUERIES = Queries(
    items=torch.tensor([[3, 1, 1], [0, 2, 0]]),
    sequence=torch.tensor([0, 0, 1, 1]),
    length=torch.tensor([0, 2, 1, 3]),
    user=torch.tensor([0, 1]),
    start=torch.tensor([0, 0]),
)
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4, 4)


def test_the_items_before_an_answer_by_hand():
    items, real = before(QUERIES)
    assert [row[mask].tolist() for row, mask in zip(items, real, strict=True)] == [[], [3, 1], [0], [0, 2, 0]]


def test_only_the_items_before_an_answer_are_excluded():
    allowed = without_seen(LOGITS, QUERIES, -torch.inf).isfinite()
    assert allowed.tolist() == [[True] * 4, [True, False, True, False], [False, True, True, True], [False, True] * 2]
    assert torch.equal(without_seen(LOGITS, QUERIES, -torch.inf)[allowed], LOGITS[allowed])


def test_nothing_is_excluded_where_nothing_would_be_left():
    both = queries_of([np.array([0, 1]), np.array([1, 1])], CPU)
    logits = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert without_seen(logits, both, -torch.inf).tolist() == [[1, 2], [1, -torch.inf]]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_probabilities_sum_to_one_and_temperature_divides_logits(exclude_seen):
    found = normalised(LOGITS, QUERIES, exclude_seen, temperature=2.0)
    kept = without_seen(LOGITS, QUERIES, -torch.inf).isfinite() if exclude_seen else torch.ones(4, 4, dtype=torch.bool)
    powers = (LOGITS / 2).exp() * kept
    torch.testing.assert_close(found, powers / powers.sum(dim=1, keepdim=True))
    torch.testing.assert_close(in_proportion(7 * LOGITS.exp(), QUERIES, exclude_seen, temperature=2.0), found)


def test_histories_become_queries_at_their_ends():
    found = queries_of([np.array([2, 0]), np.array([], dtype=np.int64), np.array([1])], CPU)
    assert found.items.tolist() == [[2, 0], [0, 0], [1, 0]]
    assert [part.tolist() for part in found[1:]] == [[0, 1, 2], [2, 0, 1], [-1] * 3, [0] * 3]


def test_popularity_leaves_no_item_without_mass():
    assert popularity(np.array([0, 1, 3]), CPU).exp().tolist() == pytest.approx([1, 2, 4])
