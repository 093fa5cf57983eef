"""Negatives of training prompts: items that did not come next, from the model's own beams and elsewhere.

    beam     what the model itself ranks highest under the trie;
    sibling  items that share the longest prefix with the target, at random;
    popular  by training interactions;
    random   uniformly.

None has the semantic ID of the target or of an item of the user's training sequence: those before the target were
liked, and those after it would be preferred the wrong way round. Items that are held out are not looked at. A source
that has nothing left for a prompt gives its part to `random`.

Every prompt has random numbers of its own, so the result depends neither on batches nor on the number of processes.

Source: S-DPO (arXiv:2406.09215) draws at random; the model's own wrong answers, items near the target and popular ones
are RosePO's rejections (arXiv:2410.12519).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmrec.configs import DpoConfig
from llmrec.decoding.ranker import SidRanker
from llmrec.evaluation.protocol import dealt
from llmrec.evaluation.ranking import UNFILLED
from llmrec.runtime import processes
from llmrec.runtime.console import progress
from llmrec.sid.groups import buckets
from llmrec.sid.table import SidTable
from llmrec.training.dpo.preferences import Preferences
from llmrec.training.preference.policy import Prompts

TRIES = 8  # rounds of drawing until what is left is listed instead


class Pool:
    """What negatives are drawn from.

    Args:
        table: Semantic IDs.
        training_counts: (N,) training interactions of each item.
    """

    def __init__(self, table: SidTable, training_counts: np.ndarray):
        codes_NL = table.codes(np.arange(table.num_items))
        *self.prefixes, self.sids = [_Groups(codes_NL[:, : level + 1]) for level in range(table.num_levels)]
        self.cumulative = {"popular": training_counts.cumsum(), "random": np.arange(1, len(codes_NL) + 1)}

    def barred(self, rows: np.ndarray) -> np.ndarray:
        """Item rows of all items that have the semantic ID of one of these."""
        return np.concatenate([self.sids.members(group) for group in np.unique(self.sids.of[rows])])

    def draw(self, source: str, target: int, count: int, taken: set[int], rng: np.random.Generator) -> list[int]:
        """Up to `count` further item rows of a source other than `beam`.

        Args:
            source: Its name.
            target: Item row of the target.
            count: How many.
            taken: Groups of semantic IDs that are barred; those of what is drawn are added.
            rng: Of the prompt.
        """
        pick = self._siblings(target, rng) if source == "sibling" else self._weighted(source, count, taken, rng)
        found, group_of = [], self.sids.of
        while len(found) < count and (row := next(pick, None)) is not None:
            if group_of[row] not in taken:
                taken.add(int(group_of[row]))
                found.append(int(row))
        return found

    def _siblings(self, target: int, rng: np.random.Generator) -> Iterator[int]:
        """Items that share a prefix with the target, the longest prefix first; those without a common code never."""
        for groups in reversed(self.prefixes):
            yield from rng.permutation(groups.members(groups.of[target]))

    def _weighted(self, source: str, count: int, taken: set[int], rng: np.random.Generator) -> Iterator[int]:
        """Items drawn by weight, then, where most are taken, the rest of them in an order drawn by weight."""
        cumulative = self.cumulative[source]
        for _ in range(TRIES):
            yield from np.searchsorted(cumulative, rng.integers(cumulative[-1], size=2 * count), side="right")
        weights = np.diff(cumulative, prepend=0)
        left = np.flatnonzero((weights > 0) & ~np.isin(self.sids.of, list(taken)))
        keys = rng.exponential(size=len(left)) / weights[left]  # Efraimidis and Spirakis
        yield from left[np.argsort(keys)]


class _Groups:
    """Items with equal codes; `of` is the (N,) group of each item."""

    def __init__(self, codes_NL: np.ndarray):
        self.order, starts, counts = buckets(codes_NL)
        self.bounds = np.append(starts, len(codes_NL))
        self.of = np.empty(len(codes_NL), np.int64)
        self.of[self.order] = np.repeat(np.arange(len(starts)), counts)

    def members(self, group: int) -> np.ndarray:
        return self.order[self.bounds[group] : self.bounds[group + 1]]


def mine(
    prompts: Prompts, table: SidTable, training_counts: np.ndarray, config: DpoConfig, ranker: SidRanker | None
) -> Preferences:
    """Negatives of each prompt; a prompt for which no item is left is left out.

    Args:
        prompts: Of the training split.
        table: Semantic IDs.
        training_counts: (N,) training interactions of each item.
        config: Of the stage.
        ranker: Of the model that is asked for beams; may be None where `beam` is no source.

    Returns:
        Preferences in the order of the prompts, the same in every process.
    """
    pool = Pool(table, training_counts)
    longest_first = np.argsort([-len(history) for history in prompts.histories], kind="stable")
    size = config.micro_batch_size
    batches = [longest_first[first : first + size] for first in range(0, len(prompts), size)]
    own = dealt(batches, processes.rank(), processes.count())
    found = processes.gather(list(_mined(prompts, pool, config, ranker, own)))
    found.sort(key=lambda each: each[0])
    kept = [each for each in found if each[1]]
    numbers, rows, sources, ranks = zip(*kept, strict=True) if kept else ((), (), (), ())
    return Preferences(
        prompts.take(numbers), [np.array(each) for each in rows], list(sources), [np.array(each) for each in ranks]
    )


def _plan(config: DpoConfig, number: int) -> list[int]:
    """How many negatives each source gives to a prompt; on average their shares exactly."""
    rng = np.random.default_rng([config.seed, number, 0])
    weights = config.negative_weights or [1.0] * len(config.negative_sources)
    ends = np.cumsum(weights) / np.sum(weights)
    places = (rng.random() + np.arange(config.negatives)) / config.negatives
    return np.bincount(np.searchsorted(ends[:-1], places, side="right"), minlength=len(weights)).tolist()


def _mined(
    prompts: Prompts, pool: Pool, config: DpoConfig, ranker: SidRanker | None, batches: Sequence[np.ndarray]
) -> Iterator[tuple[int, list[int], list[str], list[int]]]:
    """Number, negatives, sources and ranks of each prompt of some batches."""
    taken = {int(i): np.append(prompts.sequences[i], prompts.targets[i]) for batch in batches for i in batch}
    barred = {i: pool.barred(rows) for i, rows in taken.items()}
    asked = ([prompts.histories[i] for i in batch] for batch in batches)
    excluded = ([barred[int(i)] for i in batch] for batch in batches)
    rankings = iter([None] * len(batches))
    if "beam" in config.negative_sources:
        rankings = ranker.rank_batches(zip(asked, excluded, strict=True), min(config.negatives, len(pool.sids.of)))
    pairs = progress(zip(batches, rankings, strict=True), "dpo: negatives", total=len(barred), unit="prompts",
                     size=lambda pair: len(pair[0]))  # fmt: skip
    for batch, ranking in pairs:
        for place, i in enumerate(map(int, batch)):
            beams = [] if ranking is None else ranking.items[place]
            yield i, *_negatives(pool, config, i, int(prompts.targets[i]), barred[i], beams)


def _negatives(
    pool: Pool, config: DpoConfig, number: int, target: int, barred: np.ndarray, beams: Sequence[int]
) -> tuple[list[int], list[str], list[int]]:
    """Item rows, their sources and their places among the beams, of one prompt."""
    rng, group_of = np.random.default_rng([config.seed, number, 1]), pool.sids.of
    taken, rows, sources, ranks = set(group_of[barred].tolist()), [], [], []

    def add(source: str, found: list[int], places: Sequence[int]) -> None:
        rows.extend(found)
        sources.extend([source] * len(found))
        ranks.extend(places)

    for source, count in zip(config.negative_sources, _plan(config, number), strict=True):
        if source == "beam":
            add(source, *_best(beams, count, taken, group_of))
        else:
            found = pool.draw(source, target, count, taken, rng)
            add(source, found, [-1] * len(found))
    found = pool.draw("random", target, config.negatives - len(rows), taken, rng)
    add("random", found, [-1] * len(found))
    return rows, sources, ranks


def _best(beams: Sequence[int], count: int, taken: set[int], group_of: np.ndarray) -> tuple[list[int], list[int]]:
    """The first beams that are not taken, and their places."""
    rows, places = [], []
    for place, row in enumerate(beams):
        if len(rows) == count or row == UNFILLED:
            break
        if group_of[row] not in taken:
            taken.add(int(group_of[row]))
            rows.append(int(row))
            places.append(place)
    return rows, places
