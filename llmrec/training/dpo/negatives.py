"""Negatives of training prompts: items that did not come next, from the model's own beams and elsewhere.

    beam     items that the model itself ranks highest under the trie;
    sibling  items that share the longest prefix with the target, at random;
    popular  items drawn by training interactions;
    random   items drawn uniformly.

No negative has the semantic ID of the target or of an item of the user's training sequence: the user liked the items
before the target, and those after it would be preferred the wrong way round. Held-out items are not looked at. If a
source has nothing left for a prompt, `random` fills its part.

Every prompt has its own random numbers, so the result depends neither on batches nor on the number of processes.

Source: S-DPO (arXiv:2406.09215) draws at random; the model's own wrong answers, items near the target and popular ones
are RosePO's rejections (arXiv:2410.12519).

Shapes: N items, L levels, B prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

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

NUM_TRIES = 8  # rounds of drawing by weight before the items that are left are listed instead


class Buckets:
    """Items that share their codes.

    Args:
        codes: (N, L) codes that are compared.

    Attributes:
        of: (N,) bucket of each item.
    """

    def __init__(self, codes: np.ndarray):
        self.order, starts, counts = buckets(codes)
        self.bounds = np.append(starts, len(codes))
        self.of = np.empty(len(codes), np.int64)
        self.of[self.order] = np.repeat(np.arange(len(starts)), counts)

    def members(self, bucket: int) -> np.ndarray:
        """Item rows of a bucket."""
        return self.order[self.bounds[bucket] : self.bounds[bucket + 1]]


class Pool:
    """Items that negatives are drawn from.

    Args:
        table: Semantic IDs.
        training_counts: (N,) training interactions of each item.
    """

    def __init__(self, table: SidTable, training_counts: np.ndarray):
        codes_NL = table.codes(np.arange(table.num_items))
        *self.prefixes, self.sids = [Buckets(codes_NL[:, : level + 1]) for level in range(table.num_levels)]
        self.cumulative = {"popular": training_counts.cumsum(), "random": np.arange(1, len(codes_NL) + 1)}

    def sharing_sids(self, items: np.ndarray) -> np.ndarray:
        """Item rows of all items that share the semantic ID of one of these."""
        return np.concatenate([self.sids.members(bucket) for bucket in np.unique(self.sids.of[items])])

    def siblings(self, target: int, rng: np.random.Generator) -> Iterator[int]:
        """Items that share a prefix with the target, those with the longest prefix first, otherwise at random."""
        for prefix in reversed(self.prefixes):
            yield from rng.permutation(prefix.members(prefix.of[target]))

    def weighted(self, source: str, count: int, taken: set[int], rng: np.random.Generator) -> Iterator[int]:
        """Items drawn by weight; after some rounds the items that are left, in an order drawn by weight.

        Args:
            source: `popular` or `random`.
            count: Number of items that are wanted.
            taken: SIDs that are barred.
            rng: Random numbers of the prompt.
        """
        cumulative = self.cumulative[source]
        for _ in range(NUM_TRIES):
            yield from np.searchsorted(cumulative, rng.integers(cumulative[-1], size=2 * count), side="right")
        weights = np.diff(cumulative, prepend=0)
        left = np.flatnonzero((weights > 0) & ~np.isin(self.sids.of, list(taken)))
        keys = rng.exponential(size=len(left)) / weights[left]  # Efraimidis and Spirakis
        yield from left[np.argsort(keys)]

    def take(self, candidates: Iterable[int], count: int, taken: set[int]) -> list[int]:
        """The first `count` candidates whose SIDs are not taken; their SIDs are taken from then on."""
        items: list[int] = []
        if count == 0:
            return items
        for item in candidates:
            if self.sids.of[item] not in taken:
                taken.add(int(self.sids.of[item]))
                items.append(int(item))
                if len(items) == count:
                    break
        return items


@dataclass(frozen=True)
class PromptNegatives:
    """Negatives of one prompt.

    Attributes:
        prompt: Number of the prompt.
        items: Item row of each negative.
        sources: Source of each negative.
        ranks: Rank of each negative among the model's beams, -1 for those of another source.
    """

    prompt: int
    items: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)


def mine(
    prompts: Prompts, table: SidTable, training_counts: np.ndarray, config: DpoConfig, ranker: SidRanker | None
) -> Preferences:
    """Mine the negatives of each prompt; prompts for which no item is left are dropped.

    Args:
        prompts: Prompts of the training split.
        table: Semantic IDs.
        training_counts: (N,) training interactions of each item.
        config: Options of the stage.
        ranker: Ranks items by the model; only the source `beam` needs it.

    Returns:
        Preferences in the order of the prompts, the same in every process.
    """
    longest_first = np.argsort([-len(history) for history in prompts.histories], kind="stable")
    size = config.micro_batch_size
    batches = [longest_first[first : first + size] for first in range(0, len(prompts), size)]
    own = [batch.tolist() for batch in dealt(batches, processes.rank(), processes.count())]
    mined = processes.gather(_mine_batches(prompts, Pool(table, training_counts), config, ranker, own))
    kept = sorted((each for each in mined if each.items), key=lambda each: each.prompt)
    return Preferences(
        prompts.take([each.prompt for each in kept]),
        [np.array(each.items) for each in kept],
        [each.sources for each in kept],
        [np.array(each.ranks) for each in kept],
    )


def _mine_batches(
    prompts: Prompts, pool: Pool, config: DpoConfig, ranker: SidRanker | None, batches: Sequence[list[int]]
) -> list[PromptNegatives]:
    """Mine the negatives of the prompts in some batches of prompt numbers."""
    barred = [
        [pool.sharing_sids(np.append(prompts.sequences[i], prompts.targets[i])) for i in batch] for batch in batches
    ]
    beams: Iterable[np.ndarray] = [np.empty((len(batch), 0), np.int64) for batch in batches]
    if ranker is not None and "beam" in config.negative_sources:
        histories = [[prompts.histories[i] for i in batch] for batch in batches]
        rankings = ranker.rank_batches(zip(histories, barred, strict=True), min(config.negatives, len(pool.sids.of)))
        beams = (ranking.items for ranking in rankings)
    mined = []
    steps = progress(
        zip(batches, barred, beams, strict=True),
        "dpo: negatives",
        total=sum(map(len, batches)),
        unit="prompts",
        size=lambda step: len(step[0]),
    )
    for numbers, barred_items, best_items in steps:
        for i, own_barred, best in zip(numbers, barred_items, best_items, strict=True):
            mined.append(_negatives(pool, config, i, int(prompts.targets[i]), own_barred, best.tolist()))
    return mined


def _negatives(
    pool: Pool, config: DpoConfig, prompt: int, target: int, barred: np.ndarray, beams: Sequence[int]
) -> PromptNegatives:
    """Draw the negatives of one prompt.

    Args:
        pool: Items to draw from.
        config: Options of the stage.
        prompt: Number of the prompt.
        target: Item row of the target.
        barred: Item rows that are no negatives.
        beams: Item rows that the model ranks highest, best first, then UNFILLED.
    """
    rng, taken = np.random.default_rng([config.seed, prompt, 1]), set(pool.sids.of[barred].tolist())
    rank_of, found = {item: rank for rank, item in enumerate(beams)}, PromptNegatives(prompt)

    def add(source: str, count: int) -> None:
        candidates: Iterable[int]
        if source == "beam":
            candidates = takewhile(lambda item: item != UNFILLED, beams)
        elif source == "sibling":
            candidates = pool.siblings(target, rng)
        else:
            candidates = pool.weighted(source, count, taken, rng)
        items = pool.take(candidates, count, taken)
        found.items.extend(items)
        found.sources.extend([source] * len(items))
        found.ranks.extend([rank_of[item] if source == "beam" else -1 for item in items])

    for source, count in zip(config.negative_sources, shares(config, prompt), strict=True):
        add(source, count)
    add("random", config.negatives - len(found.items))
    return found


def shares(config: DpoConfig, prompt: int) -> list[int]:
    """Number of negatives that each source gives to a prompt: equal shares on average, rounded at random."""
    rng, num_sources = np.random.default_rng([config.seed, prompt, 0]), len(config.negative_sources)
    ends = np.arange(1, num_sources) / num_sources
    places = (rng.random() + np.arange(config.negatives)) / config.negatives
    return np.bincount(np.searchsorted(ends, places, side="right"), minlength=num_sources).tolist()
