"""Popularity and Markov on held-out examples of a catalogue: the first bar for any model."""

from __future__ import annotations

import numpy as np

from llmrec.baselines.counted import BATCH, COUNTED_BASELINES
from llmrec.data.catalog import Catalog
from llmrec.evaluation.bootstrap import interval
from llmrec.evaluation.metrics import ndcg, recall
from llmrec.evaluation.protocol import COLUMNS, evaluate, per_batch
from llmrec.runtime.manifest import JsonObject

FIRST = ("popularity", "markov")
CUTOFF = 10
EXAMPLES = 2000  # a random sample of a larger split: a recall is known to .02 then, in seconds whatever the data


def reach(catalog: Catalog, split: str = "valid", seed: int = 0) -> JsonObject:
    """Fit popularity and Markov on the training sequences and rank held-out examples, by the protocol of `evaluate`.

    Args:
        catalog: Catalogue whose split has examples.
        split: valid or test.
        seed: Seed of the sample and of the intervals.

    Returns:
        split, k, examples, of (examples of the whole split), and systems[system][column][metric]: mean, low, high.
    """
    every = catalog.examples(split)
    examples = every.take(every.sample(EXAMPLES, seed))
    systems: JsonObject = {}
    for name in FIRST:
        ranker = COUNTED_BASELINES[name](catalog)
        systems[name] = {}
        for column in COLUMNS:
            position = evaluate(per_batch(ranker.rank), examples, CUTOFF, column, BATCH, name).position
            values = np.stack([recall(position, CUTOFF), ndcg(position, CUTOFF)], axis=1)
            estimates = zip(*interval(values, examples.user_ids, seed=seed), strict=True)
            systems[name][column] = {
                f"{metric}@{CUTOFF}": {"mean": float(mean), "low": float(low), "high": float(high)}
                for metric, (mean, low, high) in zip(("recall", "ndcg"), estimates, strict=True)
            }
    return {"split": split, "k": CUTOFF, "examples": len(examples), "of": len(every), "systems": systems}
