"""Pieces: features of items, and pairs of pieces that are merged into one, as byte-pair encoding merges characters.

An item is a set of features, one of each kind, and a history is a sequence of such sets. A piece stands for one or more
features, also of neighbouring items, so how an item is written depends on the items around it. There are many ways to
write a history:

segment         Every set is put in a random order, and the pairs of the row of features are merged, the first learned
                first. Drawn anew for every example, this shows a model most of the pieces (set permutation
                regularisation, SPR).
segment_fixed   The pair with the largest weight is merged first, by its weight when it was learned times its
                weight where it stands. There is one result. Items that are answers are written like this.

Shapes: F features, M merges, P = F + M pieces, n items of a history, m kinds of
features.

Source: ActionPiece (arXiv:2502.13581), sections 3.2 and 3.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from llmrec.runtime.manifest import JsonObject
from llmrec.sid.bounds import LARGEST
from llmrec.sid.codes import EMPTY
from llmrec.sid.pieces.feature_sets import Node, Place, flatten, merge_place, ordered, places

MOST_SEGMENTATIONS = 64
MOST_FEATURES = 2**26  # of all pieces together: a merge may double a piece, so a small file may unfold to any size
NO_RANK = float("inf")  # of a pair that is never merged


@dataclass(frozen=True, eq=False)
class Pieces:
    """Vocabulary of pieces: the features, kind after kind, then one piece for each merge.

    Args:
        kind_sizes: Number of features of each kind.
        pairs: (M, 2) int64 pieces that are merged, the smaller first; merge i makes piece F + i of earlier ones.
        weights: (M,) float64 weight of each pair when it was merged.

    Raises:
        ValueError: If a merge has a piece that is not there yet, a pair occurs twice, a weight is not positive, or the
            features of all pieces are too many.

    Examples:
        >>> import numpy as np
        >>> from llmrec.sid.pieces.pieces import Pieces
        >>> pieces = Pieces((2, 2), np.array([[0, 3]]), np.array([2.0]))  # codes 0 and 1 of an item are one piece
        >>> pieces.segment_fixed(pieces.features(np.array([[0, 1], [1, 1]])))
        [4, 1, 3]
        >>> pieces.features_of([4])
        [0, 3]
    """

    kind_sizes: tuple[int, ...]
    pairs: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        numbers = np.arange(self.num_features, len(self))
        if self.pairs.shape != (len(self.weights), 2) or not 0 < self.num_features <= len(self) <= LARGEST:
            raise ValueError(f"{self.pairs.shape} pairs were given with {len(self.weights)} weights.")
        wrong = (self.pairs[:, 0] < 0) | (self.pairs[:, 0] > self.pairs[:, 1]) | (self.pairs[:, 1] >= numbers)
        wrong |= ~(self.weights > 0)
        if wrong.any() or len(self.rank_of) < len(self.pairs):
            raise ValueError(
                "A merge needs two earlier pieces, the smaller first, a weight above 0, and a pair of its own; "
                f"{int(wrong.sum())} of {len(self.pairs)} have none of that, or a pair occurs twice."
            )
        _ = self.sizes  # refuses pieces that would unfold without end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pieces) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __len__(self) -> int:
        return self.num_features + len(self.pairs)

    @property
    def num_kinds(self) -> int:
        """Number of features of an item, m."""
        return len(self.kind_sizes)

    @property
    def num_features(self) -> int:
        """Number of features, F."""
        return sum(self.kind_sizes)

    @cached_property
    def rank_of(self) -> dict[tuple[int, int], int]:
        """Merged piece of each pair; the one that was learned first has the lowest id."""
        return {(one, other): self.num_features + i for i, (one, other) in enumerate(self.pairs.tolist())}

    @cached_property
    def sha256(self) -> str:
        """Hash of features, merges and weights."""
        digest = hashlib.sha256(repr(self.kind_sizes).encode())
        digest.update(np.ascontiguousarray(self.pairs, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.weights, dtype="<f8").tobytes())
        return digest.hexdigest()

    def features(self, codes: np.ndarray) -> np.ndarray:
        """Convert codes of each kind to features; (N, m) codes -> (N, m) pieces."""
        return np.asarray(codes) + np.cumsum((0, *self.kind_sizes[:-1]))

    def features_of(self, pieces: Sequence[int]) -> list[int]:
        """List the features that pieces stand for, ascending and so kind after kind."""
        return sorted(feature for piece in pieces for feature in self._expanded[piece])

    @cached_property
    def _expanded(self) -> list[tuple[int, ...]]:
        """Features of each piece."""
        features: list[tuple[int, ...]] = [(feature,) for feature in range(self.num_features)]
        for one, other in self.pairs.tolist():
            features.append(features[one] + features[other])
        return features

    @cached_property
    def sizes(self) -> np.ndarray:
        """(P,) int64 number of features of each piece.

        Raises:
            ValueError: If all pieces together have more than MOST_FEATURES.
        """
        sizes, total = [1] * self.num_features, self.num_features
        for one, other in self.pairs.tolist():
            sizes.append(sizes[one] + sizes[other])
            total += sizes[-1]
            if total > MOST_FEATURES:
                raise ValueError(f"{len(sizes)} pieces have {total:,} features; at most {MOST_FEATURES:,} can be read.")
        return np.array(sizes)

    def answers(self, features: np.ndarray) -> np.ndarray:
        """Write items alone, as answers: (N, m) features -> (N, m) int64 pieces, -1 behind the last."""
        answers = np.full(features.shape, EMPTY)
        for row, item in enumerate(features):
            pieces = self.segment_fixed(item[np.newaxis])
            answers[row, : len(pieces)] = pieces
        return answers

    def items(self, answers: np.ndarray) -> np.ndarray:
        """Read answers, (N, m) pieces with -1 behind the last, as (N, m) features.

        Raises:
            ValueError: If the pieces of an answer are not those of one item, with one feature of each kind.
        """
        if answers.max(initial=0) >= len(self):
            raise ValueError(f"there is a piece {answers.max()}, but {len(self)} pieces.")
        kinds = np.repeat(np.arange(self.num_kinds), self.kind_sizes)
        found = [self.features_of([piece for piece in answer if piece != EMPTY]) for answer in answers.tolist()]
        whole = list(range(self.num_kinds))
        wrong = next((row for row, features in enumerate(found) if kinds[features].tolist() != whole), None)
        if wrong is not None:
            raise ValueError(f"row {wrong} has the pieces {answers[wrong].tolist()}, which are not those of one item.")
        return np.array(found, dtype=np.int64)

    def segment(self, features: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Write a history with every set in a random order.

        Args:
            features: (n, m) features of its items.
            rng: Source of the orders.

        Returns:
            Pieces.
        """
        return self.merge(rng.permuted(features, axis=1).reshape(-1).tolist())

    def merge(self, row: list[int]) -> list[int]:
        """Merge neighbouring pieces of a row, the pair that was learned first at first.

        Args:
            row: Pieces; changed.

        Returns:
            The row, no pair of which is left to merge.
        """
        rank_of = self.rank_of
        ranks = [rank_of.get(ordered(*pair), NO_RANK) for pair in pairwise(row)]
        while ranks and (first := min(ranks)) != NO_RANK:
            place = ranks.index(first)
            row[place : place + 2] = [int(first)]
            del ranks[place]
            for i in range(max(place - 1, 0), min(place + 1, len(ranks))):
                ranks[i] = rank_of.get(ordered(row[i], row[i + 1]), NO_RANK)
        return row

    def segment_fixed(self, features: np.ndarray) -> list[int]:
        """Write a history, or an item, in its one fixed way.

        Args:
            features: (n, m) features of its items.

        Returns:
            Pieces.
        """
        nodes = [Node(tuple(item)) for item in np.asarray(features).tolist()]
        seen: dict[tuple[Node, Node | None], tuple[float, Place | None]] = {}  # most nodes stay as they are
        while True:
            largest, best, at = 0.0, None, 0
            for i, pair in enumerate(zip(nodes, [*nodes[1:], None], strict=False)):
                if pair not in seen:
                    seen[pair] = self._heaviest(*pair)
                if seen[pair][0] > largest:
                    (largest, best), at = seen[pair], i
            if best is None:
                return flatten(nodes)
            nodes = merge_place(nodes, at, best, self.rank_of[best.pair])

    def _heaviest(self, node: Node, following: Node | None) -> tuple[float, Place | None]:
        """Weight of the heaviest pair of a node that is a piece, and its place; 0 and None if there is none."""
        largest, best = 0.0, None
        for place in places(node, following):
            piece = self.rank_of.get(place.pair)
            weight = 0.0 if piece is None else float(self.weights[piece - self.num_features]) / place.cells
            if weight > largest:
                largest, best = weight, place
        return largest, best

    def to_dict(self) -> JsonObject:
        """Convert the pieces to their arguments, for JSON."""
        return {"kind_sizes": list(self.kind_sizes), "pairs": self.pairs.tolist(), "weights": self.weights.tolist()}

    @classmethod
    def from_dict(cls, values: JsonObject) -> Pieces:
        """Make pieces of the output of `to_dict`.

        Raises:
            ValueError, KeyError, TypeError: If the values are of another form, or merges do not fit together.
        """
        pairs = np.asarray(values["pairs"], dtype=np.int64).reshape(-1, 2)
        return cls(tuple(map(int, values["kind_sizes"])), pairs, np.asarray(values["weights"], dtype=np.float64))


def check_segmentations(segmentations: int | None, other: object) -> None:
    """Refuse a number of segmentations that cannot be.

    Args:
        segmentations: Of a SidVocabulary.
        other: What the vocabulary has that does not go with pieces; None if nothing.

    Raises:
        ValueError: If it is no integer from 0 to MOST_SEGMENTATIONS, or there is something else.
    """
    if segmentations is None:
        return
    if type(segmentations) is not int or not 0 <= segmentations <= MOST_SEGMENTATIONS:
        raise ValueError(f"segmentations is {segmentations!r}; an integer from 0 to {MOST_SEGMENTATIONS} is needed")
    if other is not None:
        raise ValueError("pieces go with neither words, item tokens nor a head")
