"""Any baseline by its name, counted or trained."""

from __future__ import annotations

from llmrec.baselines.counted import COUNTED, Baseline
from llmrec.configs.evaluate import TRAINED
from llmrec.data.catalog import Catalog

BASELINES = (*COUNTED, *TRAINED)


def baseline(name: str, catalog: Catalog, seed: int = 0, device: str = "auto", **options: int) -> Baseline:
    """A baseline that has learned the training sequences of a catalogue.

    Args:
        name: One of BASELINES.
        catalog: Whose training sequences are learned; a trained baseline chooses its epoch on the valid rows.
        seed: Of a trained baseline.
        device: Of a trained baseline: auto, cpu or cuda.
        options: Of the network of a trained baseline.

    Raises:
        ValueError: If a baseline to be trained finds no valid rows, nothing to learn from, or no side field.
    """
    if name in COUNTED:
        return COUNTED[name](catalog)
    from llmrec.baselines import NETWORKS, NeuralRanker

    return NeuralRanker(NETWORKS[name], catalog, seed, device, **options)
