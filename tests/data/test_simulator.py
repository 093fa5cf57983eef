"""The simulator obeys its own truth, is deterministic, and is fast enough for scale tests."""

from __future__ import annotations

import time

import numpy as np
import pytest

from llmrec.data.simulator import HOME, simulate


@pytest.fixture(scope="module")
def simulation():
    return simulate(3000, 60, seed=3)


def test_same_seed_same_data(simulation):
    again, other = simulate(3000, 60, seed=3).dataset, simulate(3000, 60, seed=4).dataset
    assert again.items.equals(simulation.dataset.items)
    assert again.interactions.equals(simulation.dataset.interactions)
    assert not other.interactions.equals(simulation.dataset.interactions)


def test_truth_is_a_distribution(simulation):
    np.testing.assert_allclose(simulation.transition.sum(axis=1), 1)
    for cluster in range(len(simulation.transition)):
        assert simulation.popularity[simulation.item_clusters == cluster].sum() == pytest.approx(1)
    assert simulation.next_item(user=0, last_item=5).sum() == pytest.approx(1)


def test_log_follows_the_truth(simulation):
    """Item and cluster frequencies after an item agree with `next_item`, averaged over users."""
    dataset = simulation.dataset
    row_of = {item_id: row for row, item_id in enumerate(dataset.items["item_id"])}
    rows = np.array([row_of[item_id] for item_id in dataset.interactions["item_id"]])
    users = dataset.interactions["user_id"].str.strip_prefix("user-").cast(int).to_numpy()
    same_user = users[1:] == users[:-1]
    last, following, owner = rows[:-1][same_user], rows[1:][same_user], users[1:][same_user]
    expected = np.zeros(len(row_of))
    for user, item in zip(owner, last, strict=True):
        expected += simulation.next_item(user, item)
    observed = np.bincount(following, minlength=len(row_of))
    # Pearson's chi-square has 59 degrees of freedom: mean 59, standard deviation 11.
    assert ((observed - expected) ** 2 / expected).sum() < 59 + 5 * 11
    clusters = simulation.item_clusters
    stays_home = (clusters[following] == simulation.home[owner]).mean()
    assert stays_home > HOME


def test_items_describe_their_cluster(simulation):
    items, clusters = simulation.dataset.items, simulation.item_clusters
    categories = {cluster: set() for cluster in clusters}
    for cluster, category in zip(clusters, items["category"], strict=True):
        categories[cluster].add(category)
    assert all(len(names) == 1 for names in categories.values())
    assert len(set.union(*categories.values())) == len(categories)
    within = np.mean([items["lat"].to_numpy()[clusters == c].std() for c in categories])
    assert within < items["lat"].std() / 3
    assert items["title"].str.contains(r"^[a-z]{6} [a-z]{6} [a-z]{6}$").all()
    assert items["item_id"].n_unique() == 60


def test_times_rise_and_lengths_are_bounded(simulation):
    log = simulation.dataset.interactions
    lengths = log.group_by("user_id").len()["len"]
    assert lengths.min() == 5 and lengths.max() <= 50
    steps = log.select(log["timestamp"].diff().alias("step")).filter(log["user_id"] == log["user_id"].shift(1))
    assert steps["step"].min() >= 0


def test_a_hundred_thousand_users_take_seconds():
    started = time.perf_counter()
    assert simulate(100_000, 5000).dataset.interactions["user_id"].n_unique() == 100_000
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 16)])
def test_smallest_sizes(size):
    dataset = simulate(*size).dataset
    assert dataset.items.height == size[1]
    assert dataset.interactions["item_id"].is_in(dataset.items["item_id"].implode()).all()


def test_empty_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1; given 0 and 5"):
        simulate(0, 5)


def test_users_are_drawn_in_blocks(monkeypatch):
    """The first block and the items are those of a smaller log; later blocks go on with the numbers of the users."""
    whole = simulate(25, 40, seed=1).dataset
    monkeypatch.setattr("llmrec.data.simulator.USERS_AT_A_TIME", 10)
    blocks = simulate(25, 40, seed=1).dataset
    again = simulate(25, 40, seed=1).dataset
    assert blocks.interactions.equals(again.interactions)
    users = blocks.interactions["user_id"].unique(maintain_order=True).to_list()
    assert users == [f"user-{number}" for number in range(25)]
    assert blocks.interactions["item_id"].is_in(blocks.items["item_id"].implode()).all()
    assert not blocks.interactions.equals(whole.interactions)
