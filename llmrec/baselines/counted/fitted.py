"""Options of a counted baseline, chosen on valid examples.

One pass over the grid: each option in turn takes its best value while the others stay, which needs as many fits as the
grid has values. Valid targets choose options only; nothing else is learned from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmrec.baselines.counted.popularity import BATCH, Popularity
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import ndcg
from llmrec.evaluation.protocol import COLUMNS, evaluate, per_batch
from llmrec.runtime.console import progress, say

EXAMPLES = 4000  # valid examples that choose; a random sample of a larger split
SELECTION_K = 10


def fitted(build: Callable[..., Popularity], catalog: Catalog, seed: int = 0, **given: Any) -> Popularity:
    """Fit a counted baseline, the options that are not given chosen on valid.

    Args:
        build: Class of the baseline, or any function that makes one from its options.
        catalog: Catalogue whose valid examples choose; without any, the defaults stay.
        seed: Seed of the sample of valid examples.
        given: Options that are not searched.

    Returns:
        The baseline with the largest ndcg@10, averaged over the columns plain and seen_excluded.
    """
    best, examples = build(**given), catalog.examples("valid")
    name, grid = best.name, {key: values for key, values in best.grid.items() if key not in given}
    if not grid or len(examples) == 0:
        return best
    examples = examples.take(examples.sample(EXAMPLES, seed))
    highest = quality(best, examples)
    for option, values in progress(grid.items(), f"fit {name}", unit="options"):
        chosen = dataclasses.asdict(best.chosen)
        for value in values:
            if value != chosen[option]:
                other = build(**chosen | {option: value})
                reached = quality(other, examples)
                if reached > highest:
                    best, highest = other, reached
    say(f"{name}: {searched(best, grid)}, valid ndcg@{SELECTION_K} {highest:.4f} (mean of both columns)")
    return best


def quality(ranker: Popularity, examples: Examples) -> float:
    """Mean ndcg of both columns."""
    positions = [evaluate(per_batch(ranker.rank), examples, SELECTION_K, column, BATCH).position for column in COLUMNS]
    return sum(float(ndcg(position, SELECTION_K).mean()) for position in positions) / len(positions)


def searched(ranker: Popularity, grid: Mapping[str, Sequence[float]]) -> str:
    """The chosen values, for people."""
    return ", ".join(f"{option} {getattr(ranker.chosen, option)}" for option in grid)
