"""Examples: histories of users and the items that came next, as arrays of item rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NONE = -1  # in the place of an item row


@dataclass(frozen=True)
class Examples:
    """Examples of one split: a user, a history of item rows and the item that came next.

    Attributes:
        user_ids: External user id of each example; a user may own several examples.
        values: (sum of history lengths,) int64 item rows of all histories, one after another, each oldest first.
        offsets: (num_examples + 1,) int64; history i is `values[offsets[i]:offsets[i + 1]]`.
        targets: (num_examples,) int64 item rows.

    >>> examples = Examples(["ann", "bob"], np.array([0, 1, 4]), np.array([0, 2, 3]), np.array([2, 3]))
    >>> len(examples), examples.history(0).tolist(), examples.sequence(1).tolist()
    (2, [0, 1], [4, 3])
    """

    user_ids: list[str]
    values: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.targets)

    def history(self, i: int) -> np.ndarray:
        """Item rows of the history of example `i`, oldest first.

        Returns:
            (history length,) int64; a view of `values`.
        """
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def sequence(self, i: int) -> np.ndarray:
        """History and target of example `i` as one array of item rows.

        Returns:
            (history length + 1,) int64.
        """
        return np.append(self.history(i), self.targets[i])

    def last_items(self) -> np.ndarray:
        """Last item row of each history, NONE where it is empty.

        Returns:
            (num_examples,) int64.
        """
        last, is_filled = np.full(len(self), NONE), np.diff(self.offsets) > 0
        last[is_filled] = self.values[self.offsets[1:][is_filled] - 1]
        return last

    def sequences(self) -> list[np.ndarray]:
        """`sequence(i)` of every example, in order.

        Returns:
            One (history length + 1,) int64 array for each example.
        """
        rows, offsets = self.joined()
        return np.split(rows, offsets[1:-1]) if len(self) else []

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """Histories and targets as arrays, without a Python object for each example.

        Returns:
            (T,) int64 item rows of all sequences, one after another, and (num_examples + 1,) int64 bounds of each.

        >>> Examples(["ann", "bob"], np.array([0, 1, 4]), np.array([0, 2, 3]), np.array([2, 3])).joined()
        (array([0, 1, 2, 4, 3]), array([0, 3, 5]))
        """
        rows = np.insert(self.values, self.offsets[1:], self.targets)
        return rows, self.offsets + np.arange(len(self.offsets))

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Positions of random examples, each at most once.

        Args:
            count: Number of examples to draw; all of them are returned if there are no more.
            seed: Seed of the draw.

        Returns:
            (min(count, num_examples),) int64, ascending.

        >>> examples = Examples(["u"] * 9, np.arange(9), np.arange(10), np.zeros(9, np.int64))
        >>> examples.sample(3, seed=0).tolist() == examples.sample(3, seed=0).tolist()
        True
        >>> examples.sample(100, seed=0).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
        """
        if count >= len(self):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), size=count, replace=False))

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Select examples.

        Args:
            indices: Positions of the examples, in the order wanted.

        >>> examples = Examples(["ann", "bob"], np.array([0, 1, 4]), np.array([0, 2, 3]), np.array([2, 3]))
        >>> examples.take([1]).user_ids, examples.take([1]).sequences()[0].tolist()
        (['bob'], [4, 3])
        """
        histories = [self.history(i) for i in indices]
        return Examples(
            user_ids=[self.user_ids[i] for i in indices],
            values=np.concatenate([np.empty(0, np.int64), *histories]),
            offsets=np.cumsum([0, *map(len, histories)]),
            targets=self.targets[np.asarray(indices, dtype=np.int64)],
        )
