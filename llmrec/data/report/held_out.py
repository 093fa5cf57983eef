"""Held-out examples of a catalogue: how many there are, and how many of their targets training or the user has seen."""

from __future__ import annotations

import numpy as np

from llmrec.data.catalog import SPLITS, Catalog
from llmrec.data.examples import Examples
from llmrec.runtime.manifest import JsonObject

HELD_OUT = SPLITS[1:]


def split_facts(catalog: Catalog) -> JsonObject:
    """Sizes of the splits.

    Args:
        catalog: Catalogue with its three splits.

    Returns:
        Split -> examples and users; of valid and test also cold (share of the targets without a training interaction),
        in_history (share of the targets that stand in their own history), last_again (share of the targets that are the
        last item of it) and median_history.
    """
    facts: JsonObject = {}
    for name in SPLITS:
        examples = catalog.train if name == SPLITS[0] else catalog.examples(name)
        facts[name] = {"examples": len(examples), "users": len(set(examples.user_ids))}
        if name in HELD_OUT and len(examples):
            facts[name] |= {
                "cold": float((catalog.training_counts[examples.targets] == 0).mean()),
                "in_history": float(in_history(examples).mean()),
                "last_again": float((examples.last_items() == examples.targets).mean()),
                "median_history": float(np.median(np.diff(examples.offsets))),
            }
    return facts


def in_history(examples: Examples) -> np.ndarray:
    """(n,) bool, True for an example whose target stands in its own history."""
    lengths = np.diff(examples.offsets)
    owner = np.repeat(np.arange(len(examples)), lengths)
    again = examples.values == np.repeat(examples.targets, lengths)
    return np.bincount(owner[again], minlength=len(examples)) > 0
