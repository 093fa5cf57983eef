"""Ranking: what every ranker answers, ours and the baselines, and how many beams ours needs for it.

Shapes: B rows, R slots of a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNFILLED = -1  # item row of an empty slot


@dataclass(frozen=True)
class Ranking:
    """What a ranker answers for B rows, best first.

    Attributes:
        items: (B, R) int64 item rows, each at most once in a row; -1 is an unfilled slot.
        groups: (B, R) int64 tie group of each slot, the 0-based rank of its SID. The items of a group stand side by
            side and all of them are listed, so R exceeds k where a group straddles it.
        scores: (B, R) float, not increasing along a row.
        invalid: (B,) int64 number of answers that were no item and have no slot; none where left out.

    Raises:
        ValueError: If the shapes differ.
    """

    items: np.ndarray
    groups: np.ndarray
    scores: np.ndarray
    invalid: np.ndarray | None = None

    def __post_init__(self):
        if not self.items.shape == self.groups.shape == self.scores.shape or self.items.ndim != 2:
            raise ValueError(
                f"items, groups and scores of a Ranking need one shape (B, R); they have {self.items.shape}, "
                f"{self.groups.shape} and {self.scores.shape}."
            )

    def __len__(self) -> int:
        return len(self.items)


def default_num_beams(num_items: int, cutoffs: list[int]) -> int:
    """Beam width that leaves room behind the largest cut-off: min(num_items, max(50, 5 k))."""
    return min(num_items, max(50, 5 * max(cutoffs)))
