"""The sample of items for measures of pairs, and similarities between items by vectors or by codes.

Shapes: M items of the sample, B of them, D dimension, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_ITEMS = 100_000  # items among which neighbours are searched
MAX_QUERIES = 2048  # items whose neighbours are searched; a share is then exact to 0.022 (95 %)
BLOCK = 2**23  # similarities held in memory at once

Vectors = Callable[[np.ndarray], Tensor]  # item rows (n,) -> (n, D)
Similarity = Callable[[np.ndarray], Tensor]  # positions in a sample (B,) -> (B, M)


class Sample(NamedTuple):
    """Sampled items; with vectors, only items that have one.

    Attributes:
        rows: (M,) item rows, ascending.
        queries: Ascending positions in `rows` of the items whose neighbours are searched.
        vectors: (M, D) float32, the input of the quantiser; None for a method without vectors.
        reconstruction: (M, D) float32, the vectors that the codes stand for; None likewise.
    """

    rows: np.ndarray
    queries: np.ndarray
    vectors: Tensor | None
    reconstruction: Tensor | None


def draw(num_items: int, vectors: Vectors | None, reconstruction: Vectors | None, seed: int) -> Sample:
    """Draw at most MAX_ITEMS items, and at most MAX_QUERIES of them as queries."""
    rng = np.random.default_rng(seed)
    rows = _choose(rng, num_items, MAX_ITEMS)
    known_vectors, reconstructed = None, None
    if vectors is not None:
        known_vectors = _float(vectors(rows))
        known = known_vectors.any(dim=1)
        rows, known_vectors = rows[known.numpy()], known_vectors[known]
    if reconstruction is not None:
        reconstructed = _float(reconstruction(rows))
    return Sample(rows, _choose(rng, len(rows), MAX_QUERIES), known_vectors, reconstructed)


def cosines(vectors_MD: Tensor) -> Similarity:
    """Cosine to every item of the sample."""
    unit_MD = torch.nn.functional.normalize(vectors_MD, dim=1)
    return lambda positions: unit_MD[positions] @ unit_MD.T


def common_prefixes(codes_ML: np.ndarray) -> Similarity:
    """Number of first codes shared with every item of the sample."""
    codes_LM = torch.from_numpy(np.ascontiguousarray(codes_ML.T, np.int32))

    def lengths(positions: np.ndarray) -> Tensor:
        same, length = torch.ones(len(positions), codes_LM.shape[1], dtype=torch.bool), torch.zeros(())
        for codes_M in codes_LM:
            same = same & (codes_M[positions, None] == codes_M)
            length = length + same
        return length

    return lengths


def blocks(positions: np.ndarray, num_items: int) -> Iterator[np.ndarray]:
    """Split positions into parts with at most BLOCK similarities to all items."""
    step = max(1, BLOCK // max(num_items, 1))
    for start in range(0, len(positions), step):
        yield positions[start : start + step]


def _choose(rng: np.random.Generator, num_items: int, most: int) -> np.ndarray:
    return np.arange(num_items) if num_items <= most else np.sort(rng.choice(num_items, most, replace=False))


def _float(vectors: Tensor) -> Tensor:
    return vectors.detach().to("cpu", torch.float32)
