"""Two-dimensional map of the items as SVG: t-SNE of the vectors, coloured by what a caller asks of the items.

t-SNE (van der Maaten and Hinton, JMLR 9, 2008) keeps neighbours and nothing else: distances between groups, and their
sizes, mean nothing.

Shapes: n items on the map, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

MAX_POINTS = 1200
ITERATIONS = 400
ANGLE = 0.8  # of Barnes and Hut's approximation
DIMENSIONS = 50  # of the principal components that t-SNE reads, as its authors advise
PERPLEXITY = 30.0
SIDE, MARGIN = 460, 8
GREY = "#c4c4c4"


class Point(NamedTuple):
    """One item on the map.

    Attributes:
        x: In any unit.
        y: Likewise.
        colour: CSS colour.
        title: What a pointer on it shows.
    """

    x: float
    y: float
    colour: str
    title: str


def coordinates(vectors_nD: Tensor, seed: int) -> np.ndarray | None:
    """Place items on a plane so that near vectors are near.

    Args:
        vectors_nD: (n, D) vectors at unit length.
        seed: Of principal components and t-SNE.

    Returns:
        (n, 2) float; None for fewer than four items, or where all are equal.
    """
    points = vectors_nD.double().numpy()
    if len(points) < 4 or np.ptp(points, axis=0).max() < 1e-6:
        return None
    components = PCA(min(DIMENSIONS, *points.shape), random_state=seed).fit_transform(points)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    init = "pca" if components.shape[1] > 1 else "random"
    solver = TSNE(perplexity=perplexity, max_iter=ITERATIONS, init=init, random_state=seed, angle=ANGLE)
    return solver.fit_transform(components)


def scatter(points: Sequence[Point]) -> str:
    """SVG element of the points, grey ones below; the drawing has no axes, since t-SNE's mean nothing."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    extent = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    scale = (SIDE - 2 * MARGIN) / extent
    marks = []
    for point in sorted(points, key=lambda point: point.colour != GREY):
        at = f'cx="{MARGIN + (point.x - min(xs)) * scale:.1f}" cy="{MARGIN + (point.y - min(ys)) * scale:.1f}"'
        marks.append(f'<circle {at} r="3" fill="{point.colour}"><title>{escape(point.title)}</title></circle>')
    return f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" fill-opacity="0.8">{"".join(marks)}</svg>'
