"""LightGCN: the steps over the graph against dense algebra, its loss by hand, negatives that are none of the user's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.views.hold_out import hold_out
from llmrec.views.lightgcn import (
    Propagation,
    Settings,
    adjacency,
    bpr_loss,
    interactions,
    lightgcn_view,
    ndcg_of,
    negatives,
    propagate,
    train,
)
from tests.views.test_views import train_rows
from tests.views.test_views_hold_out import catalog_of, without_held_out

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = Settings(learning_rate=0.02, max_epochs=8)
# User 0 took items 0 and 1, user 1 items 1 and 2, user 2 item 1; nobody took item 3.
EDGES = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 1]])


def dense(edges: np.ndarray, num_users: int, num_items: int) -> np.ndarray:
    """D^-1/2 A D^-1/2 as the paper writes it; rows without an edge are zero."""
    matrix = np.zeros((num_users + num_items,) * 2)
    matrix[edges[:, 0], edges[:, 1] + num_users] = 1
    matrix += matrix.T
    scale = np.diag(np.where(matrix.sum(axis=1) > 0, matrix.sum(axis=1), np.inf) ** -0.5)
    return scale @ matrix @ scale


@pytest.fixture(scope="module")
def tastes():
    """60 users of two tastes, items 0 to 4 and 5 to 9; items 10 and 11 are never taken."""
    rng = np.random.default_rng(0)
    return catalog_of([rng.permutation(5)[:4] + 5 * (user % 2) for user in range(60)])


def test_edges_weigh_one_over_the_root_of_both_degrees():
    # Degrees: users 2, 2, 1; items 1, 3, 1, 0.
    graph = adjacency(EDGES, 3, 4).to_dense().numpy()
    expected = np.zeros((3, 4))
    expected[0, :2] = 2**-0.5, 6**-0.5
    expected[1, 1:3] = 6**-0.5, 2**-0.5
    expected[2, 1] = 3**-0.5
    np.testing.assert_allclose(graph[:3, 3:], expected, rtol=1e-6)
    np.testing.assert_allclose(graph, dense(EDGES, 3, 4), rtol=1e-6)


def test_one_step_by_hand_and_three_against_dense_algebra():
    graph = adjacency(EDGES, 3, 4)
    vectors = torch.zeros(7, 1)
    vectors[3:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # of the items alone
    one = propagate(vectors, graph, 1)[:, 0]
    assert one[2].item() == pytest.approx(2 / 3**0.5 / 2)  # user 2: half of what item 1 brings, and of nothing
    assert one[4].item() == pytest.approx(1.0) and one[6].item() == pytest.approx(2.0)
    start, step = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32), dense(EDGES, 3, 4)
    expected = sum(np.linalg.matrix_power(step, power) for power in range(4)) @ start / 4
    np.testing.assert_allclose(propagate(torch.from_numpy(start), graph, 3), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_autograd():
    graph, target = adjacency(EDGES, 3, 4), torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.ones(7, 2, requires_grad=True) for _ in range(2))
    (Propagation.apply(ours, graph, 3) * target).sum().backward()
    (propagate(theirs, graph.to_dense(), 3) * target).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_loss_by_hand():
    # Without steps: user (1, 2), item taken (3, 0), item not taken (0, 1): 3 - 2 = 1; squared lengths 5 + 9 + 1.
    vectors = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    graph = adjacency(np.array([[0, 0]]), 1, 2)
    loss = bpr_loss(vectors, graph, torch.tensor([[0, 0], [1, 1], [2, 2]]), Settings(layers=0, l2=0.1))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1)) + 0.1 * 15 / 2)


def test_interactions_count_repeats_once():
    assert interactions(train_rows([3, 1, 3], [0, 1])).tolist() == [[0, 1], [0, 3], [1, 0], [1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=6))
def test_negatives_are_every_item_that_the_user_lacks_and_each_once(taken):
    edges = np.array([[user, item] for user, items in enumerate(taken) for item in sorted(items)])
    lacking = np.array([7 - len(taken[user]) for user in edges[:, 0]])
    drawn = [negatives(edges, 7, SimpleNamespace(integers=lambda high, r=r: np.minimum(r, high - 1))) for r in range(6)]
    for edge, (user, _) in enumerate(edges):
        found = [int(row[edge]) for row in drawn[: lacking[edge]]]
        assert found == sorted(set(range(7)) - taken[user])


def test_a_held_out_item_is_ranked_among_items_that_its_user_lacks():
    # One number per item: 9, 5, 4, 3. User 0 took item 0 and is asked for item 2: second behind item 1.
    catalog = catalog_of([[0, 0], [2, 3]], 4, valid=[[0, 2]])
    vectors = torch.tensor([[1.0], [1.0], [9.0], [5.0], [4.0], [3.0]])
    quality = ndcg_of(catalog.examples("valid"), catalog.train)
    assert quality(vectors) == pytest.approx(1 / np.log2(3))


def test_training_lowers_the_loss_and_puts_tastes_together(tastes):
    inner = hold_out(tastes, 0)
    edges = interactions(inner.train)
    graph = adjacency(edges, 60, 12)
    _, log = train(graph, edges, 8, ndcg_of(inner.examples("valid"), inner.train), QUICK, 0)
    losses = [epoch.loss for epoch in log]
    assert np.log(2) > losses[0] > 2 * losses[-1]
    view = lightgcn_view(tastes, 8, 0, "cpu", QUICK)
    assert view.missing.nonzero()[0].tolist() == [10, 11] and not view.vectors[10:].any()
    unit = view.vectors[:10] / np.linalg.norm(view.vectors[:10], axis=1, keepdims=True)
    similarity = unit @ unit.T
    within, between = np.concatenate([similarity[:5, :5], similarity[5:, 5:]]), similarity[:5, 5:]
    assert within.min() > between.max() + 0.3


def test_the_best_epoch_is_kept_and_patience_ends_training():
    edges = np.array([[0, 0], [1, 1]])
    said, seen = iter([0.1, 0.5, 0.3, 0.3, 0.9]), []

    def quality(vectors):
        seen.append(vectors.clone())
        return next(said)

    kept, log = train(adjacency(edges, 2, 2), edges, 2, quality, Settings(patience=2), 0)
    assert [epoch.quality for epoch in log] == [0.1, 0.5, 0.3, 0.3]
    np.testing.assert_array_equal(kept, seen[1])


def test_a_user_who_has_every_item_is_in_the_graph_and_not_in_the_loss():
    edges = np.array([[0, 0], [0, 1], [0, 2], [1, 0]])
    vectors, log = train(adjacency(edges, 2, 3), edges, 2, lambda vectors: 0.0, Settings(max_epochs=2), 0)
    assert np.isfinite(vectors).all() and all(np.isfinite(epoch.loss) for epoch in log)


def test_law_1_and_the_same_seed(tastes):
    quick = Settings(max_epochs=1)
    sequences = [sequence.tolist() for sequence in tastes.train.sequences()]
    one = lightgcn_view(catalog_of(sequences, valid=[[0, 7]], test=[[3, 11]]), 4, 3, "cpu", quick)
    other = lightgcn_view(catalog_of(sequences, valid=[[3, 10, 9]], test=[[0, 2]]), 4, 3, "cpu", quick)
    assert one.vectors.tobytes() == other.vectors.tobytes() and (one.missing == other.missing).all()
    assert one.provenance == other.provenance
    blind = lightgcn_view(without_held_out(sequences), 4, 3, "cpu", quick)
    assert one.vectors.tobytes() == blind.vectors.tobytes()
    assert not np.allclose(one.vectors, lightgcn_view(tastes, 4, 4, "cpu", quick).vectors)


def test_provenance_says_how_to_build_it_again(tastes):
    facts = lightgcn_view(tastes, 4, 3, "cpu", Settings(max_epochs=1)).provenance
    assert {"encoder": "lightgcn", "dim": "4", "seed": "3", "epoch": "1", "layers": "3", "l2": "0.0001",
            "judges": "30"}.items() <= facts.items()  # fmt: skip
