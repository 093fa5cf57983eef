"""Any baseline by its name, counted or trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmrec.baselines.counted import COUNTED_BASELINES
from llmrec.data.catalog import Catalog
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.ranking import Ranking


class Baseline(Protocol):
    """A fitted baseline."""

    @property
    def log(self) -> Sequence[Epoch]:
        """One entry per epoch of training; empty for a counted baseline."""

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items for each history; arguments and result as in `Popularity.rank`."""


def baseline(name: str, catalog: Catalog, seed: int = 0, device: str = "auto") -> Baseline:
    """Fit a baseline to the training sequences of a catalogue.

    Args:
        name: One of `llmrec.configs.evaluate.BASELINES`.
        catalog: Catalogue whose training sequences are learned; its valid examples decide the epoch of a trained
            baseline.
        seed: Seed of a trained baseline.
        device: Device of a trained baseline: auto, cpu or cuda.

    Raises:
        ValueError: If a trained baseline finds no valid examples, nothing to learn from, or no side field.
    """
    if name in COUNTED_BASELINES:
        return COUNTED_BASELINES[name](catalog)
    from llmrec.baselines import NETWORKS, NeuralRanker  # torch, whose import takes seconds

    return NeuralRanker(NETWORKS[name], catalog, seed, device)
