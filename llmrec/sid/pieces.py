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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.runtime.reading import reading
from llmrec.sid.bounds import LARGEST, check_parquet
from llmrec.sid.feature_sets import Node, flatten, merge_place, ordered, places

FILE = "pieces.parquet"
NO_RANK = float("inf")  # of a pair that is never merged


@dataclass(frozen=True, eq=False)
class Pieces:
    """Vocabulary of pieces: the features, kind after kind, then one piece for each merge.

    Args:
        kind_sizes: Number of features of each kind.
        pairs: (M, 2) int64 pieces that are merged, the smaller first; merge i makes piece F + i of earlier ones.
        weights: (M,) float64 weight of each pair when it was merged.

    Raises:
        ValueError: If a merge has a piece that is not there yet, a pair occurs twice, or a weight is not positive.

    Examples:
        >>> import numpy as np
        >>> from llmrec.sid.pieces import Pieces
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
        """List the features that pieces stand for, ascending."""
        found, rest = [], list(pieces)
        while rest:
            piece = rest.pop()
            if piece < self.num_features:
                found.append(piece)
            else:
                rest += self.pairs[piece - self.num_features].tolist()
        return sorted(found)

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
        while True:
            best, largest = None, 0.0
            for place in places(nodes):
                piece = self.rank_of.get(place.pair)
                weight = 0.0 if piece is None else self.weights[piece - self.num_features] / place.cells
                if weight > largest:
                    best, largest = place, weight
            if best is None:
                return flatten(nodes)
            nodes = merge_place(nodes, best, self.rank_of[best.pair])

    def save(self, directory: str | Path) -> None:
        """Write `pieces.parquet` (first, second, weight) into a directory."""
        data = {"first": self.pairs[:, 0], "second": self.pairs[:, 1], "weight": self.weights}
        metadata = {"kind_sizes": ",".join(map(str, self.kind_sizes))}
        pq.write_table(pa.table(data).replace_schema_metadata(metadata), Path(directory) / FILE)

    @classmethod
    def load(cls, directory: str | Path) -> Pieces:
        """Read `pieces.parquet` of a directory.

        Raises:
            ValueError: If the file is absent or unreadable, or its merges do not fit together.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ValueError(f"'{path}' does not exist; `llmrec tokenize` with method action_piece writes it.")
        with reading(path, "pieces", "run `llmrec tokenize` again"):
            check_parquet(path)
            table = pq.read_table(path, partitioning=None)
            sizes = tuple(map(int, table.schema.metadata[b"kind_sizes"].decode().split(",")))
            pairs = np.stack([table[name].to_numpy().astype(np.int64) for name in ("first", "second")], axis=1)
            return cls(sizes, pairs, table["weight"].to_numpy().astype(np.float64))
