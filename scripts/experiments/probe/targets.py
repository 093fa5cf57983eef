"""What the probe is trained and judged on: items, and those before them in their sequences.

Shapes: B rows, M items of a history, T items of all sequences, n targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.data.examples import Examples

RECENT = 10  # items of a history that are read


@dataclass(frozen=True)
class Targets:
    """Targets, and where their left contexts are in one long array of sequences.

    Attributes:
        items: (T,) item rows of all sequences, one after another.
        starts: (n,) place in `items` where the sequence of each target begins.
        places: (n,) place of each target.
    """

    items: Tensor
    starts: Tensor
    places: Tensor

    @classmethod
    def of(cls, rows: Examples, device: torch.device, every: bool = False) -> Targets:
        """The targets of the rows, or every item of their sequences that has one before it."""
        number, lengths = np.arange(len(rows)), np.diff(rows.offsets) + 1
        starts, places = rows.offsets[:-1] + number, rows.offsets[1:] + number
        if every:
            starts, places = starts.repeat(lengths), np.arange(lengths.sum())
            starts, places = starts[places > starts], places[places > starts]
        items = np.insert(rows.values, rows.offsets[1:], rows.targets)
        return cls(*(torch.from_numpy(array).to(device) for array in (items, starts, places)))

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(B, M) items before each of the chosen targets, latest first, -1 where there is none, and (B,) targets."""
        starts, places = self.starts[chosen], self.places[chosen]
        before = places[:, None] - torch.arange(1, RECENT + 1, device=places.device)
        histories = torch.where(before >= starts[:, None], self.items[before.clamp(min=0)], -1)
        return histories, self.items[places]
