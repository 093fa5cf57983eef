"""Simulator: a catalogue and an interaction log of any size with known truth, for tests and machines without data.

Items belong to taste clusters and have a Zipf popularity within their cluster. A user has one home cluster. The next
item of a user is drawn in two steps:

    cluster: with probability `HOME` the home cluster, otherwise from row `transition[cluster of the last item]`,
             which favours staying, then the next cluster on a ring;
    item:    from the popularity within that cluster, repeats allowed.

So a popularity, a collaborative and a sequential model each have something to find, and `next_item` gives the best
possible answer. Titles are made of words, some of which only one cluster has; coordinates scatter around the centre of
the cluster; ids are numbered at random, so they carry no information.

Shapes: U users, N items, C clusters, T longest sequence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from llmrec.data.columns import ITEM_ID, LAT, LON, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.public_formats import Dataset, compose_text

NAME = re.compile(r"simulated(?::([1-9]\d*)x([1-9]\d*))?")
DEFAULT_SIZE = (2000, 500)
MAX_SIZE = 10_000_000  # users, and items: the tables of both take some GB of memory
USERS_AT_A_TIME = 1_000_000  # each block has a stream of random numbers of its own, and takes 3 GB while it is drawn
MAX_CLUSTERS = 16
HOME, STAY, ADVANCE = 0.3, 0.3, 0.5  # what remains of a transition row is spread over all clusters
MIN_LENGTH, MAX_LENGTH, MEAN_EXTRA = 5, 50, 7.0
WORDS_PER_CLUSTER, COMMON_WORDS = 8, 40
START_S, YEAR_S, MEAN_GAP_S = 1_600_000_000, 365 * 86_400, 3 * 86_400


def simulated_size(dataset: str | None) -> tuple[int, int] | None:
    """Numbers of users and items that the name of a simulated dataset asks for; None for any other name.

    Raises:
        ValueError: If it asks for more than `MAX_SIZE`.

    >>> simulated_size("simulated"), simulated_size("simulated:60x30"), simulated_size("movietweetings")
    ((2000, 500), (60, 30), None)
    """
    match = NAME.fullmatch(dataset or "")
    if match is None or match[1] is None:
        return DEFAULT_SIZE if match else None
    if max(len(match[1]), len(match[2])) > len(str(MAX_SIZE)) or max(int(match[1]), int(match[2])) > MAX_SIZE:
        raise ValueError(f"dataset is '{dataset}'; at most {MAX_SIZE:,} users and {MAX_SIZE:,} items can be simulated.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Simulation:
    """A simulated dataset and the truth behind it; item arrays are in the order of `dataset.items`.

    Attributes:
        dataset: Items and interactions.
        item_clusters: (N,) int64 cluster of each item.
        popularity: (N,) probability of an item within its cluster.
        transition: (C, C) probability of the next cluster (columns) after a cluster (rows).
        home: (U,) int64 home cluster of each user; user number u has the id `user-u`.
    """

    dataset: Dataset
    item_clusters: np.ndarray
    popularity: np.ndarray
    transition: np.ndarray
    home: np.ndarray

    def next_item(self, user: int, last_item: int) -> np.ndarray:
        """True distribution of the next item.

        Args:
            user: Number of the user.
            last_item: Position of the user's last item in `dataset.items`.

        Returns:
            (N,) probabilities.
        """
        clusters = (1 - HOME) * self.transition[self.item_clusters[last_item]]
        clusters[self.home[user]] += HOME
        return clusters[self.item_clusters] * self.popularity


def simulate(num_users: int, num_items: int, seed: int = 0) -> Simulation:
    """Draw a catalogue and a log; the same arguments give the same data.

    Raises:
        ValueError: If a size is below 1.
    """
    if num_users < 1 or num_items < 1:
        raise ValueError(f"simulated users and items must be at least 1; given {num_users} and {num_items}.")
    rng = np.random.default_rng(seed)
    num_clusters = min(MAX_CLUSTERS, num_items)
    clusters = rng.permutation(np.arange(num_items) % num_clusters)
    by_cluster = np.argsort(clusters, kind="stable")  # items of cluster 0, most popular first, then of cluster 1, …
    sizes = np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    popularity = np.empty(num_items)
    popularity[by_cluster] = _zipf(sizes)
    home, transition = rng.integers(num_clusters, size=num_users), _transition(num_clusters)
    firsts = range(0, num_users, USERS_AT_A_TIME)
    streams = [rng, *(np.random.default_rng([seed, number]) for number in range(1, len(firsts)))]
    cumulative, items = popularity[by_cluster].cumsum(), pl.DataFrame()
    logs: list[pl.DataFrame] = []
    for first, stream in zip(firsts, streams, strict=True):
        walk_UT, lengths = _walk(stream, home[first : first + USERS_AT_A_TIME], transition)
        counts_UT = np.arange(walk_UT.shape[1]) < lengths[:, None]
        picked = _pick(stream, walk_UT, counts_UT, cumulative, starts, sizes)
        items = items if logs else _items(rng, clusters)
        logs.append(_interactions(stream, items[ITEM_ID][by_cluster[picked]], counts_UT, first))
    return Simulation(Dataset(items, pl.concat(logs)), clusters, popularity, transition, home)


def _zipf(sizes: np.ndarray) -> np.ndarray:
    """(N,) probabilities proportional to 1 / rank within each of the consecutive clusters."""
    weights = [1 / np.arange(1, size + 1) for size in sizes]
    return np.concatenate([w / w.sum() for w in weights])


def _transition(num_clusters: int) -> np.ndarray:
    """(C, C) rows that favour staying, then the next cluster on a ring."""
    eye = np.eye(num_clusters)
    return STAY * eye + ADVANCE * np.roll(eye, 1, axis=1) + (1 - STAY - ADVANCE) / num_clusters


def _walk(rng: np.random.Generator, home: np.ndarray, transition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U, T) cluster of every step, and the (U,) number of steps that count."""
    lengths = np.minimum(MIN_LENGTH - 1 + rng.geometric(1 / (MEAN_EXTRA + 1), size=len(home)), MAX_LENGTH)
    cumulative = transition.cumsum(axis=1)
    walk_UT = np.empty((len(home), lengths.max()), np.int64)
    walk_UT[:, 0] = home
    for step in range(1, walk_UT.shape[1]):
        rows = cumulative[walk_UT[:, step - 1]]  # (U, C)
        drawn = (rng.random((len(home), 1)) * rows[:, -1:] >= rows).sum(axis=1)
        walk_UT[:, step] = np.where(rng.random(len(home)) < HOME, home, drawn)
    return walk_UT, lengths


def _pick(
    rng: np.random.Generator,
    walk_UT: np.ndarray,
    counts_UT: np.ndarray,
    cumulative: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
) -> np.ndarray:
    """Position of an item drawn from the cluster of each step that counts, in the order by cluster.

    The cumulative popularity of all clusters, one after another, rises by 1 per cluster, so one sorted search serves
    every draw.
    """
    drawn, clusters = rng.random(walk_UT.shape)[counts_UT], walk_UT[counts_UT]
    found = np.searchsorted(cumulative, clusters + drawn, side="right")
    return np.clip(found, starts[clusters], (starts + sizes - 1)[clusters])  # rounding must not leave the cluster


def _items(rng: np.random.Generator, clusters: np.ndarray) -> pl.DataFrame:
    num_items, num_clusters = len(clusters), clusters.max() + 1
    words = _words(rng, COMMON_WORDS + num_clusters * WORDS_PER_CLUSTER)
    common = words[rng.integers(COMMON_WORDS, size=num_items)]
    first = COMMON_WORDS + clusters * WORDS_PER_CLUSTER
    pick = rng.integers(WORDS_PER_CLUSTER, size=(2, num_items))
    centres = rng.uniform((40.5, -74.3), (41.0, -73.6), size=(num_clusters, 2))
    places = centres[clusters] + rng.normal(scale=0.01, size=(num_items, 2))  # 0.01 degrees: about 1 km
    items = pl.DataFrame(
        {
            ITEM_ID: rng.permutation(num_items),
            "common": common,
            "one": words[first + pick[0]],
            "two": words[first + pick[1]],
            "category": words[COMMON_WORDS + np.arange(num_clusters) * WORDS_PER_CLUSTER][clusters],
            LAT: places[:, 0],
            LON: places[:, 1],
        }
    )
    title = pl.concat_str("common", "one", "two", separator=" ").alias(TITLE)
    return compose_text(items.select(pl.format("item-{}", ITEM_ID).alias(ITEM_ID), title, "category", LAT, LON))


def _words(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) distinct made-up words of three syllables."""
    syllables = np.array([consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"])
    first, second, third = np.unravel_index(
        rng.choice(len(syllables) ** 3, size=count, replace=False), (len(syllables),) * 3
    )
    return np.char.add(np.char.add(syllables[first], syllables[second]), syllables[third])


def _interactions(
    rng: np.random.Generator, item_ids: pl.Series, counts_UT: np.ndarray, first_user: int
) -> pl.DataFrame:
    num_users = len(counts_UT)
    gaps = rng.exponential(MEAN_GAP_S, size=counts_UT.shape)
    times = START_S + rng.uniform(0, YEAR_S, size=(num_users, 1)) + gaps.cumsum(axis=1)
    users = np.repeat(np.arange(first_user, first_user + num_users), counts_UT.sum(axis=1))
    return pl.DataFrame({USER_ID: users, ITEM_ID: item_ids, TIMESTAMP: times[counts_UT].astype(np.int64)}).with_columns(
        pl.format("user-{}", USER_ID).alias(USER_ID), pl.lit(1.0).alias(WEIGHT)
    )
