"""Transition graph: the items within a few steps of the last ones, ranked by how they are reached and what they are.

Source: Han et al., "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential
Recommendation" (arXiv:2605.07125), which starts from the last one or two items, takes the candidates from a few-hop
graph of item transitions and ranks them by the similarity of item features. We could read its abstract only, so all
that it leaves open is ours: an edge is the share of an item's transitions; a candidate has the probability that a walk
along the edges is there after 1, 2, … hops, each worth half of the one before; similarity is the cosine of text
vectors; `weight` mixes both, and 1 is the similarity alone, as in the abstract; later items count more. Each item keeps
its CANDIDATES most frequent successors, and as many items that its walks reach most often, so that the graph of a large
catalogue stays small. Edges against the order of a sequence, too, with .3 of the weight, were worse on the valid
examples of Beauty and of MovieTweetings (ndcg@10, mean of both columns: .0763 -> .0741 and .1294 -> .1262).

Shapes: N items, F features, P pairs of items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from torch import Tensor

from llmrec.baselines.counted.entries import largest, matrix
from llmrec.baselines.counted.markov import transitions
from llmrec.baselines.counted.neighbours import NeighbourRanker
from llmrec.baselines.counted.options import CHOSEN, CountedOptions
from llmrec.configs.options import option
from llmrec.data.catalog import Catalog

Features: TypeAlias = np.ndarray | sparse.csr_array

HOP = 0.5  # share that a hop counts of the one before
CANDIDATES = 200  # successors that a walk may take from an item, and candidates of an item; as ItemKNN has neighbours
LEAST_SIMILARITY = 0.1  # added to every cosine: an item without text, or of unlike text, stays a candidate
BLOCK = 256  # items whose walks are taken at once; bounds memory before the candidates are cut
PAIRS = 1 << 17  # cosines computed at once


@dataclass(kw_only=True)
class TransitionGraphOptions(CountedOptions):
    """Options of the transition graph."""

    hops: int = option(f"Longest walk from an item to a candidate. {CHOSEN}", 2, least=1)
    last_items: int = option(f"Latest items of a history from which the walks start. {CHOSEN}", 2, least=1)
    decay: float = option(
        f"Weight of each of these items, as a share of that of the next one. {CHOSEN}", 0.5, above=0, most=1
    )
    weight: float = option(
        f"Weight of similarity against transitions: 0 ranks by transitions alone, 1 by similarity alone. {CHOSEN}",
        0.5,
        least=0,
        most=1,
    )


class TransitionGraph(NeighbourRanker):
    """Items near the last items in the graph of training transitions, by walk and similarity.

    score(j) = sum over the last items i of decay^age(i) * walk(i, j)^(1 - weight) * (.1 + max(0, cos(i, j)))^weight,
    where walk(i, j) is the probability that a walk from i is at j after h hops, summed over h with weights .5^(h - 1).
    An item is a candidate of itself only if it followed itself in training.

    Args:
        catalog: Catalogue whose training sequences are counted.
        features: (N, F) vector of each item, zero where it has none; by default TF-IDF of the words of its text.
        options: Fields of TransitionGraphOptions.

    Raises:
        ValueError: If no features are given and no item has text.
    """

    name = "transition_graph"
    options: ClassVar[type[TransitionGraphOptions]] = TransitionGraphOptions
    grid: ClassVar[Mapping[str, Sequence[float]]] = {
        "weight": (0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1),
        "hops": (1, 2, 3),
        "last_items": (1, 2, 3, 5),
        "decay": (0.3, 0.5, 0.7),
    }
    chosen: TransitionGraphOptions

    def __init__(
        self,
        catalog: Catalog,
        device: str | torch.device = "cpu",
        learned: Mapping[str, Tensor] | None = None,
        features: Features | None = None,
        **options: Any,  # TransitionGraphOptions checks them
    ):
        self.features = features
        super().__init__(catalog, device, learned, **options)

    def count_neighbours(self, catalog: Catalog) -> sparse.csr_array:
        """Score the (N, N) candidates of each item."""
        features = normalize(words(catalog) if self.features is None else self.features)
        edges = transitions(catalog).tocoo()
        graph = matrix(*largest(edges.row, edges.col, edges.data, CANDIDATES), edges.shape)
        blocks = [self._candidates(graph, features, first) for first in range(0, catalog.num_items, BLOCK)]
        return sparse.vstack(blocks, format="csr")

    def _candidates(self, graph: sparse.csr_array, features: Features, first: int) -> sparse.csr_array:
        """(BLOCK, N) scores of the candidates of the items from `first` on."""
        reached = graph[first : first + BLOCK]
        walk = reached
        for hop in range(1, self.chosen.hops):
            reached = reached @ graph
            walk = walk + HOP**hop * reached
        entries = walk.tocoo()
        follows_itself = graph.diagonal()[first : first + BLOCK] > 0
        kept = (entries.row + first != entries.col) | follows_itself[entries.row]
        row, col, walked = largest(entries.row[kept], entries.col[kept], entries.data[kept], CANDIDATES)
        similar = LEAST_SIMILARITY + np.maximum(0, cosines(features, row + first, col))
        weight = self.chosen.weight
        return matrix(row, col, walked ** (1 - weight) * similar**weight, walk.shape)

    def weight(self, age: np.ndarray) -> np.ndarray:
        """`decay` to the power of the age for the last items, 0 for all others."""
        return self.chosen.decay**age * (age < self.chosen.last_items)


def words(catalog: Catalog) -> sparse.csr_array:
    """(N, F) TF-IDF of the words of each item's text, or of its title where the catalogue has no column `text`.

    Raises:
        ValueError: If no item has a word.
    """
    column = "text" if "text" in catalog.items.column_names else "title"
    texts = [text or "" for text in catalog.items[column].to_pylist()]
    try:
        return sparse.csr_array(TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts))
    except ValueError:
        raise ValueError(
            f"transition_graph compares items by their text, and no '{column}' of {catalog.source}/items.parquet has a "
            "word. Give it a view of `llmrec embed`, or leave it out."
        ) from None


def cosines(features: Features, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P,) inner products of the unit vectors of P pairs of items."""
    found = np.empty(len(one))
    for first in range(0, len(one), PAIRS):
        part = slice(first, first + PAIRS)
        found[part] = (features[one[part]] * features[other[part]]).sum(axis=1)
    return found
