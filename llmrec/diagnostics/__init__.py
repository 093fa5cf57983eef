"""Quality of semantic IDs before any LLM is trained: report.json of `llmrec tokenize`, its tables and its page.

`codes` reads the codes alone; `neighbours`, `structure` and `cold_start` set them against vectors and behaviour;
`terminal` and `page` show what was found. Only training interactions are read. What would be too large is measured on a
sample that the report names.

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
    """All diagnostics of one tokenization.

    Args:
        catalog: The items; training interactions alone are read.
        views: What is known of the items; None for a method without views.
        sid_table: The semantic IDs after the collision policy; an item with several is judged by its first.
        encoded_codes: (N, L) codes before the policy.
        level_sizes_before: Codes of each level before the policy.
        vectors: Item rows (n,) -> (n, D), what was quantised; None for a method without vectors.
        reconstruction: Item rows (n,) -> (n, D), what the codes stand for; None likewise.
        seed: Of the sample, of ties and of permutations.

    Returns:
        Content for JSON, None where a measure has nothing to say: num_items; items_without_any_view;
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
