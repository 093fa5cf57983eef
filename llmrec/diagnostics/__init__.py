"""Quality of semantic IDs before any LLM is trained: report.json of `llmrec tokenize` and its tables.

`codes` measures the codes alone; `neighbours`, `structure` and `cold_start` compare them with vectors and behaviour.
Only training interactions are read. Measures of pairs of items use a sample, which the report describes.

Shapes: N items, L levels.
"""

from __future__ import annotations

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.diagnostics.codes import churn, collision_report, level_report, tree_report
from llmrec.diagnostics.cold_start import cold_start_report
from llmrec.diagnostics.comparison import compare, show_comparison
from llmrec.diagnostics.neighbours import neighbour_report, reconstruction_report
from llmrec.diagnostics.sample import Vectors, draw
from llmrec.diagnostics.structure import history_overlap, index_consistency
from llmrec.diagnostics.tables import show
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable
from llmrec.tokenizers.collisions import expected_collision_rate
from llmrec.views import ItemViews

__all__ = ["churn", "collision_report", "compare", "level_report", "report", "show", "show_comparison"]


def report(
    catalog: Catalog,
    views: ItemViews | None,
    sid_table: SidTable,
    encoded_codes: np.ndarray,
    level_sizes_before: list[int],
    vectors: Vectors | None,
    reconstruction: Vectors | None,
    seed: int,
) -> JsonObject:
    """Measure one tokenization.

    Args:
        catalog: The items; only training interactions are read.
        views: Views of the items; None for a method without views.
        sid_table: The semantic IDs after the collision policy; the first one counts if an item has several.
        encoded_codes: (N, L) codes before the policy.
        level_sizes_before: Size of each level before the policy.
        vectors: Item rows (n,) -> (n, D), the input of the quantiser; None for a method without vectors.
        reconstruction: Item rows (n,) -> (n, D), the vectors that the codes stand for; None likewise.
        seed: Seed of the sample, of ties and of permutations.

    Returns:
        Content for JSON, None where a measure does not apply: num_items; items_without_any_view;
        expected_collision_rate of uniform codes; sample; before_policy, after_policy; levels; tree; neighbours;
        reconstruction; index_consistency; history_overlap; cold_start.
    """
    training_N = catalog.training_counts
    codes_NL = sid_table.codes(np.arange(catalog.num_items))
    sample = draw(catalog.num_items, vectors, reconstruction, seed)
    codes_ML = codes_NL[sample.rows]
    return {
        "num_items": catalog.num_items,
        "items_without_any_view": None if views is None else int((~views.known).sum()),
        "expected_collision_rate": expected_collision_rate(catalog.num_items, level_sizes_before),
        "sample": {"seed": seed, "items": len(sample.rows), "queries": len(sample.queries)},
        "before_policy": collision_report(encoded_codes, training_N),
        "after_policy": collision_report(codes_NL, training_N),
        "levels": level_report(sid_table, training_N),
        "tree": tree_report(sid_table),
        "neighbours": neighbour_report(catalog, views, codes_ML, sample, seed),
        "reconstruction": reconstruction_report(sample),
        "index_consistency": None if sample.vectors is None else index_consistency(codes_ML, sample.vectors, seed),
        "history_overlap": history_overlap(catalog.train, codes_NL, training_N, seed),
        "cold_start": cold_start_report(catalog, codes_ML, sample, seed),
    }
