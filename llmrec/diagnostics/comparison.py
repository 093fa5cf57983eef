"""Comparison of the reports of several tokenizations of one catalogue."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.diagnostics.tables import SOURCES
from llmrec.runtime.console import table
from llmrec.runtime.manifest import JsonObject


def compare(reports: dict[str, JsonObject]) -> dict[str, dict[str, float | None]]:
    """Collect the numbers of several reports on one catalogue.

    Args:
        reports: Name -> report.

    Returns:
        Measure -> name -> value, None if a report does not have the measure.

    Raises:
        ValueError: If the reports count different items.
    """
    sizes = {name: report["num_items"] for name, report in reports.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"The reports are of catalogues of different sizes ({sizes}); compare semantic IDs of one catalogue."
        )
    num_levels = max(len(report["levels"]) for report in reports.values())
    numbers = {name: _numbers(report, num_levels) for name, report in reports.items()}
    measures = next(iter(numbers.values()))
    compared = {measure: {name: of[measure] for name, of in numbers.items()} for measure in measures}
    return {measure: of for measure, of in compared.items() if any(value is not None for value in of.values())}


def show_comparison(compared: dict[str, dict[str, float | None]]) -> None:
    """Print the result of `compare`."""
    names = list(next(iter(compared.values())))
    rows = [[measure, *("-" if of[name] is None else of[name] for name in names)] for measure, of in compared.items()]
    table("Comparison of semantic IDs", ("", *names), rows)


def _numbers(report: JsonObject, num_levels: int) -> dict[str, float | None]:
    """The numbers that are compared; the same names for every report."""
    numbers: dict[str, float | None] = {
        "levels": len(report["levels"]),
        "collision rate before policy": _at(report, "before_policy", "collision_rate"),
        "collision rate": _at(report, "after_policy", "collision_rate"),
        "Gini of items per SID before policy": _at(report, "before_policy", "gini"),
        "expected bucket before policy": _at(report, "before_policy", "expected_bucket"),
        "leaf singletons": _at(report, "tree", "leaf_singletons"),
        "reconstruction cosine": _at(report, "reconstruction", "cosine"),
        "reconstruction separability": _at(report, "reconstruction", "separability"),
        "kNN overlap": _at(report, "reconstruction", "knn_overlap"),
    }
    for kind in ("behaviour", "text"):
        for source in SOURCES:
            numbers[f"{kind} neighbours by {source}"] = _at(report, "neighbours", kind, source)
    levels, overlap = report["levels"], (report.get("history_overlap") or {}).get("levels")
    for level in range(num_levels):
        numbers[f"perplexity / codes, level {level}"] = _of_level(levels, level, "perplexity_share")
    for level in range(num_levels):
        numbers[f"entropy given prefix, level {level}"] = _of_level(levels, level, "conditional_entropy_bits")
    for level in range(num_levels):
        cosine, null = (_of_level(report.get("index_consistency"), level, key) for key in ("cosine", "null_mean"))
        above = None if cosine is None or null is None else cosine - null
        numbers[f"index consistency above null, level {level}"] = above
    for level in range(num_levels):
        numbers[f"history overlap above null, level {level}"] = _of_level(overlap, level, "difference")
    return numbers


def _at(report: JsonObject, *path: str) -> float | None:
    """The number at a path of keys; None if a part of the path is absent or null."""
    *sections, key = path
    for section in sections:
        report = report.get(section) or {}
    return report.get(key)


def _of_level(levels: Sequence[JsonObject] | None, level: int, key: str) -> float | None:
    """A number of one level; None if the report has no such level."""
    return next((of[key] for of in levels or () if of["level"] == level), None)
