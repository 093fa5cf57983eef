"""Any baseline by its name, counted or trained."""

from __future__ import annotations

from typing import Any

from llmrec.baselines.counted import COUNTED_BASELINES, Popularity
from llmrec.baselines.networks import NETWORKS, NeuralRanker
from llmrec.data.catalog import Catalog


def baseline(
    name: str,
    catalog: Catalog,
    seed: int = 0,
    device: str = "auto",
    **options: Any,  # the class of the ranker checks them
) -> Popularity | NeuralRanker:
    """Fit a baseline to the training sequences of a catalogue.

    Args:
        name: One of `llmrec.configs.evaluate.BASELINES`.
        catalog: Catalogue whose training sequences are learned; its valid examples decide the epoch of a trained
            baseline.
        seed: Seed of a trained baseline.
        device: Device of the baseline: auto, cpu or cuda.
        options: Fields of the options of its class, such as `hidden`.

    Raises:
        ValueError: If a trained baseline finds no valid examples, nothing to learn from, or no side field.
    """
    if name in COUNTED_BASELINES:
        return COUNTED_BASELINES[name](catalog, device, **options)
    return NeuralRanker(NETWORKS[name], catalog, seed, device, **options)
