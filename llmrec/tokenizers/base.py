"""What every item tokenizer offers, and what it hands to the collision policies.

Shapes: N items, L levels, K codes of the last level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from llmrec.catalog import Catalog
from llmrec.configs import TokenizeConfig
from llmrec.views import ItemViews


@dataclass(frozen=True)
class Encoded:
    """Codes of a catalogue as the tokenizer gives them; items may still share all codes.

    Attributes:
        codes: (N, L) int64.
        last_level_cost: Item rows (n,) -> (n, K) squared distance of what the items have left before the last level
            to each of its codes.
        reconstruction_cosine: Mean cosine of the items' vectors and what their codes add up to.
    """

    codes: np.ndarray
    last_level_cost: Callable[[np.ndarray], Tensor]
    reconstruction_cosine: float


class ItemTokenizer(Protocol):
    """Learns codes from views and, if it wants, from `catalog.train`; never from held-out behaviour."""

    @classmethod
    def from_config(cls, config: TokenizeConfig) -> Self: ...

    @property
    def level_sizes(self) -> list[int]: ...

    def fit(self, catalog: Catalog, views: ItemViews) -> Self: ...

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded: ...

    def save_pretrained(self, path: str | Path) -> None: ...
