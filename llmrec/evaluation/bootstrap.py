"""Percentile bootstrap over users: the uncertainty of a mean that comes from the choice of users.

Examples of one user are not independent, so users are resampled, with all examples of a drawn user. The mean is over
examples, as in the tables: the mean of a resample is the sum over its examples divided by their number. The same seed
draws the same users for every metric, so two systems are compared on the same resamples (a paired interval).

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

Shapes: n examples, V columns of values, U users, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
CHUNK = 64  # resamples drawn at once; bounds memory at CHUNK x U


def interval(
    values: np.ndarray, user_ids: Sequence[str] | np.ndarray, samples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over examples with its 95 % interval over users.

    Args:
        values: (n,) or (n, V); each column gets its own interval, from the same resamples.
        user_ids: (n,) user of each example.
        samples: Number S of resamples of the users.
        seed: Seed of the resampling.

    Returns:
        mean, low, high; each of shape () or (V,).

    Raises:
        ValueError: If there are no examples, or `values` and `user_ids` differ in length.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(user_ids) or len(values) == 0:
        raise ValueError(
            f"{len(values)} values and {len(user_ids)} user ids were given; as many of both are needed, at least one."
        )
    matrix = values.reshape(len(values), -1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(_resampled_means(matrix, user_ids, samples, seed), [tail, 1 - tail], axis=0)
    mean, shape = matrix.mean(axis=0), values.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def paired_difference(
    a: np.ndarray, b: np.ndarray, user_ids: Sequence[str] | np.ndarray, samples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of `a - b` over the same examples with its 95 % interval; arguments and result as in `interval`."""
    return interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), user_ids, samples, seed)


def _resampled_means(matrix: np.ndarray, user_ids: Sequence[str] | np.ndarray, samples: int, seed: int) -> np.ndarray:
    """(S, V) means over the examples of U users drawn with replacement."""
    users, user_of = np.unique(np.asarray(user_ids), return_inverse=True)
    count = np.bincount(user_of).astype(np.float64)  # (U,)
    total = np.stack([np.bincount(user_of, weights=column) for column in matrix.T], axis=1)  # (U, V)
    rng, means = np.random.default_rng(seed), []
    for first in range(0, samples, CHUNK):
        size = min(CHUNK, samples - first)
        drawn = rng.integers(len(users), size=(size, len(users))) + np.arange(size)[:, None] * len(users)
        weight = (
            np.bincount(drawn.reshape(-1), minlength=size * len(users)).reshape(size, -1).astype(np.float64)
        )  # (CHUNK, U)
        means.append((weight @ total) / (weight @ count)[:, None])
    return np.concatenate(means)
