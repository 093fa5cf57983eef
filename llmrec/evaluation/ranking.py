"""The answer of every ranker, the LLM and the baselines, and the default beam width of the LLM.

Shapes: B histories, R slots of a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec.sid.table import SidTable

UNFILLED = -1  # item row of an empty slot


class ScoresNotFinite(ValueError):
    """Scores with NaN or infinity, by which nothing can be ranked."""


@dataclass(frozen=True)
class Ranking:
    """Ranked items of B histories, best first.

    Attributes:
        items: (B, R) int64 item rows, each at most once per history; -1 is an unfilled slot.
        groups: (B, R) int64 tie group of each slot, the 0-based rank of its SID. The items of a group stand side by
            side and all of them are listed, so R exceeds k if a group extends beyond k.
        scores: (B, R) float, not increasing along a ranking.
        invalid: (B,) int64 number of answers that are no item and have no slot. The default is none.

    Raises:
        ValueError: If the shapes differ, or a score is NaN, or that of a filled slot is infinite.
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
        check_scores(self.scores, self.items != UNFILLED)

    def __len__(self) -> int:
        return len(self.items)


def default_num_beams(num_items: int, cutoffs: list[int], table: SidTable | None = None) -> int:
    """Beam width with room beyond the largest cut-off k: min(num_items, max(50, 5 k)).

    Items with several SIDs may fill several beams each. Then the width is counted in SIDs, and is large enough for k
    items even if those with the most SIDs are ranked first.

    Args:
        num_items: Number of items.
        cutoffs: Cut-offs.
        table: Semantic IDs, if items may have several.
    """
    k = max(cutoffs)
    if table is None or table.sids_per_item is None:
        return min(num_items, max(50, 5 * k))
    most = np.sort(table.sids_per_item)[::-1][: min(k, num_items) - 1]
    return int(min(table.sids_per_item.sum(), max(50, 5 * k, most.sum() + 1)))


def check_scores(scores: np.ndarray, filled: np.ndarray) -> None:
    """Refuse scores by which nothing can be ranked.

    Args:
        scores: (B, R) scores.
        filled: (B, R) bool, slots that hold an item; only there an infinite score is wrong.

    Raises:
        ScoresNotFinite: If a score is NaN, or that of a filled slot is infinite.
    """
    bad = np.argwhere(np.isnan(scores) | (filled & ~np.isfinite(scores)))
    if len(bad):
        row, slot = bad[0]
        raise ScoresNotFinite(
            f"The scores of {len(np.unique(bad[:, 0]))} of {len(scores)} rankings are not finite, first "
            f"{scores[row, slot]} in ranking {row} of the batch: the model overflows, or some of its weights are not "
            "finite. Load it again, in float32 if it was loaded in another type, or give weights from before."
        )
