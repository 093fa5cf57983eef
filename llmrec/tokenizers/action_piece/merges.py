"""Learning of merges: which pairs of pieces stand side by side most often, in a corpus of histories.

Weights are whole numbers, a common multiple of the weights of `llmrec.sid.pieces.feature_sets`, so that they stay exact
however often they are changed. A merge changes the histories that have its pair, and of these only the sets around it
are counted again. The heap is updated lazily: it is told of weights that rise, and an entry whose weight has fallen is
put back where it belongs when it comes to the top.

Source: ActionPiece (arXiv:2502.13581), algorithm 1. Departures from its released code, which forgets to subtract the
weight of pairs that a merge makes vanish from a history (it then merges pairs that stand nowhere, or stops at an
assertion): weights here are those of the corpus as it is. A pair is merged once; the released code may learn a pair
again that a later merge brings together, and give it a second piece.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llmrec.runtime.console import progress
from llmrec.sid.pieces.feature_sets import NO_PIECE, Node, merge_everywhere

SHIFT = 32  # a pair is one integer, the smaller piece before these bits


class Merges(NamedTuple):
    """Merged pairs, in the order in which they were learned.

    Attributes:
        pairs: (M, 2) int64 pieces, the smaller first.
        weights: (M,) float64 weight of each pair when it was merged.
    """

    pairs: np.ndarray
    weights: np.ndarray


def learn_merges(histories: Iterable[np.ndarray], num_features: int, num_merges: int) -> Merges:
    """Merge the heaviest pair again and again.

    Args:
        histories: (n, m) distinct features of the n items of each history.
        num_features: Number of features, which are the pieces 0, 1, …
        num_merges: Largest number of merges; there are fewer where no two pieces are neighbours any more.

    Returns:
        The merges; number i makes piece `num_features + i`. Of pairs of one weight the smaller comes first.
    """
    corpus = Corpus(histories, num_features)
    learned: dict[int, int] = {}
    heap = [(-weight, pair) for pair, weight in corpus.weights.items()]
    heapq.heapify(heap)
    for _ in progress(range(num_merges), "merges", unit="merges"):
        pair = _heaviest(heap, corpus.weights, learned)
        if pair is None:
            break
        learned[pair] = corpus.weights[pair]
        for changed in corpus.merge(pair, num_features + len(learned) - 1):
            heapq.heappush(heap, (-corpus.weights[changed], changed))
    pairs = np.array([(pair >> SHIFT, pair & ((1 << SHIFT) - 1)) for pair in learned], dtype=np.int64)
    return Merges(pairs.reshape(-1, 2), np.array(list(learned.values()), dtype=np.float64) / corpus.unit)


def _heaviest(heap: list[tuple[int, int]], weights: dict[int, int], learned: dict[int, int]) -> int | None:
    """Take the heaviest pair that is not learned off the heap of upper bounds; None if none is left."""
    while heap:
        bound, pair = heapq.heappop(heap)
        weight = weights.get(pair, 0)
        if weight == 0 or pair in learned:
            continue
        if weight == -bound:
            return pair
        heapq.heappush(heap, (-weight, pair))
    return None


class Corpus:
    """Histories, the weights of their pairs, and which of them have a piece.

    Args:
        histories: See `learn_merges`.
        num_features: See `learn_merges`.

    Attributes:
        weights: Pair -> its weight in all histories, as a multiple of 1 / `unit`; pairs of no weight are absent.
        unit: What one expected neighbourhood weighs.
    """

    def __init__(self, histories: Iterable[np.ndarray], num_features: int):
        self._nodes = [[Node(tuple(item)) for item in history.tolist()] for history in histories]
        largest = max((len(node.pieces) for nodes in self._nodes for node in nodes), default=1)
        self._shares = [0, *(math.lcm(*range(1, largest + 1)) // size for size in range(1, largest + 1))]
        self.unit = self._shares[1] ** 2
        self.weights: dict[int, int] = defaultdict(int)
        self._histories_of: list[set[int]] = [set() for _ in range(num_features)]
        for number, nodes in enumerate(self._nodes):
            self._count(nodes, 0, len(nodes), 1, self.weights)
            for node in nodes:
                for piece in node.pieces:
                    self._histories_of[piece].add(number)

    def merge(self, pair: int, piece: int) -> list[int]:
        """Merge a pair in all histories.

        Args:
            pair: Pair as one integer.
            piece: Id of the merged piece, one more than the largest so far.

        Returns:
            Pairs whose weight has risen.
        """
        one, other = pair >> SHIFT, pair & ((1 << SHIFT) - 1)
        change: dict[int, int] = defaultdict(int)
        found = set()
        for number in self._histories_of[one] & self._histories_of[other]:
            old = self._nodes[number]
            new = merge_everywhere(list(old), (one, other), piece)
            if new == old:
                continue
            found.add(number)
            self._nodes[number] = new
            before, behind = _unchanged(old, new)
            self._count(old, before, len(old) - behind, -1, change)
            self._count(new, before, len(new) - behind, 1, change)
        self._histories_of.append(found)
        for changed, amount in change.items():
            self.weights[changed] += amount
            if self.weights[changed] == 0:
                del self.weights[changed]
        return [changed for changed, amount in change.items() if amount > 0]

    def _count(self, nodes: Sequence[Node], begin: int, end: int, sign: int, into: dict[int, int]) -> None:
        """Add the weights of the pairs that have a piece in the nodes from `begin` to `end`, or in their slots."""
        shares = self._shares
        for i in range(max(begin - 1, 0), end):
            pieces, slot = nodes[i]
            share = sign * shares[len(pieces)] if pieces else 0
            if i >= begin:
                within = 2 * share * shares[1]
                for j, one in enumerate(pieces):
                    for other in pieces[j + 1 :]:
                        into[one << SHIFT | other if one < other else other << SHIFT | one] += within
            if i + 1 == len(nodes):
                return
            following = nodes[i + 1].pieces
            if slot != NO_PIECE:
                self._count_across(pieces, (slot,), sign, into)
                pieces, share = (slot,), sign * shares[1]
            if following:
                self._count_across(pieces, following, sign, into)

    def _count_across(
        self, pieces: tuple[int, ...], following: tuple[int, ...], sign: int, into: dict[int, int]
    ) -> None:
        """Add the weights of the pairs of a piece on the left and one on the right."""
        if not pieces:
            return
        weight = sign * self._shares[len(pieces)] * self._shares[len(following)]
        for one in pieces:
            for other in following:
                into[one << SHIFT | other if one < other else other << SHIFT | one] += weight


def _unchanged(old: Sequence[Node], new: Sequence[Node]) -> tuple[int, int]:
    """Count the nodes that two histories have in common, from their beginning and behind that from their end."""
    shorter = min(len(old), len(new))
    before = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    behind = next((i for i in range(shorter - before) if old[-1 - i] != new[-1 - i]), shorter - before)
    return before, behind
