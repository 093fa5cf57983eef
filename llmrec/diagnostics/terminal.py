"""Tables of diagnostics for a person at a terminal: of one report, and of several beside each other.

Every table fits 100 columns, the comparison as far as the names of its reports allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrec.runtime.console import say, table
from llmrec.runtime.manifest import JsonObject

LEVEL_KEYS = ("codebook_size", "used", "usage", "entropy_bits", "perplexity_share", "kl_bits")
SOURCES = ("vectors", "quantised", "prefix", "random")


def show(report: JsonObject) -> None:
    """Print the report of `llmrec tokenize` as tables; sections that it lacks are left out."""
    for title, header, rows in tables(report):
        table(title, header, [["-" if cell is None else cell for cell in row] for row in rows])
    for line in facts(report):
        say(line)


def tables(report: JsonObject) -> list[tuple[str, tuple[str, ...], list[list[Any]]]]:
    """Title, header and rows of every table; None for a number that there is not. The page shows the same tables."""
    levels = report["levels"]
    policies = [(name.replace("_", " "), report[name]) for name in ("before_policy", "after_policy")]
    keys = ("collision_rate", "shared_items", "max_bucket", "expected_bucket", "gini")
    found = [
        (
            f"Collisions of {report['num_items']} items",
            ("", "collision rate", "in shared SIDs", "largest bucket", "expected bucket", "Gini"),
            [[name, *(of.get(key) for key in keys)] for name, of in policies],
        ),
        (
            "Codes per level",
            ("level", "codes", "used", "usage", "entropy (bits)", "perplexity / codes", "KL to uniform (bits)"),
            [[str(of["level"]), *(of.get(key) for key in LEVEL_KEYS)] for of in levels],
        ),
        (
            "Prefix tree",
            ("level", "entropy given prefix (bits)", "by training", "mean branches", "most branches"),
            [
                [
                    str(of["level"]),
                    of["conditional_entropy_bits"],
                    (of.get("training") or {}).get("conditional_entropy_bits"),
                    of.get("branching_mean"),
                    of.get("branching_max"),
                ]
                for of in levels
            ],
        ),
    ]
    return [*found, *_neighbours(report), *_structure(report), *_cold_start(report)]


def facts(report: JsonObject) -> list[str]:
    """What is said in sentences."""
    lines = [f"Expected collision rate of uniform codes: {report['expected_collision_rate']:.4f}."]
    if tree := report.get("tree"):
        lines.append(
            f"The prefix tree is filled to {tree['fill_ratio']:.2e}; {tree['leaf_singletons']:.1%} of the SIDs are "
            "alone under their last prefix."
        )
    if found := report.get("reconstruction"):
        lines.append(f"Mean cosine of items and their reconstruction: {found['cosine']:.4f}.")
        if found["separability"] is not None:
            lines.append(
                f"{found['separability']:.1%} of the reconstructions are nearest to their own vector among "
                f"{found['batch']}."
            )
    if sample := report.get("sample"):
        lines.append(
            f"Neighbours are those of {sample['queries']} items among {sample['items']}, drawn with seed "
            f"{sample['seed']}."
        )
    return [*lines, *report.get("notes", [])]


def _neighbours(report: JsonObject) -> list[tuple[str, tuple[str, ...], list[list[Any]]]]:
    found, rebuilt = report.get("neighbours"), report.get("reconstruction")
    rows = [
        [kind, found[kind]["queries"], *map(found[kind].get, SOURCES)]
        for kind in ("behaviour", "text")
        if found and found[kind]
    ]
    if rebuilt and rebuilt["knn_overlap"] is not None:
        overlap = (rebuilt["knn_overlap"], None, rebuilt["knn_overlap_random"])
        rows.append(["vectors", report["sample"]["queries"], 1.0, *overlap])
    if not rows:
        return []
    title = f"Share of an item's neighbours that are among the {(found or rebuilt)['k']} nearest by"
    return [(title, ("neighbours by", "items", "vectors", "quantised", "common prefix", "chance"), rows)]


def _structure(report: JsonObject) -> list[tuple[str, tuple[str, ...], list[list[Any]]]]:
    overlap, consistency = report.get("history_overlap"), report.get("index_consistency")
    found = []
    if consistency:
        rows = [[str(of["level"]), of["pairs"], of["cosine"], of["null_mean"], of["null_sd"]] for of in consistency]
        header = ("level", "pairs", "cosine", "permuted within parents", "sd of permutations")
        found.append(("Offsets from the parent that share a code", header, rows))
    if overlap and overlap["rows"]:
        rows = [[str(of["level"]), of["observed"], of["null"], of["difference"]] for of in overlap["levels"]]
        header = ("level", "observed", "target by popularity", "difference")
        title = f"Target's code in the history, {overlap['rows']} training rows"
        found.append((title, header, rows))
    return found


def _cold_start(report: JsonObject) -> list[tuple[str, tuple[str, ...], list[list[Any]]]]:
    found = report.get("cold_start")
    if not found or not found["items"]["cold"]:
        return []
    distance, agreement = found["distance"] or {}, found["agreement"] or {}
    rows = []
    for kind, name in (("cold", "none"), ("warm", "some")):
        near, alike = distance.get(kind, {}), agreement.get(kind, {})
        rows.append([name, found["items"][kind], near.get("q10"), near.get("q50"), near.get("q90")])
        rows[-1] += [alike.get("prefix"), alike.get("random")]
    field = agreement.get("field", "category")
    header = ("training", "items", "distance q10", "q50", "q90", f"{field} of prefix", "of all")
    return [("Items by training interactions: nearest first code, and agreement with neighbours", header, rows)]


def compare(reports: dict[str, JsonObject]) -> dict[str, dict[str, float | None]]:
    """The numbers of several reports on one catalogue.

    Args:
        reports: Name -> report.

    Returns:
        Measure -> name -> value, None where a report has no such number.

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


def _numbers(report: JsonObject, num_levels: int) -> dict[str, float | None]:
    """The numbers that are compared; the same names for every report."""
    found: dict[str, float | None] = {
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
            found[f"{kind} neighbours by {source}"] = _at(report, "neighbours", kind, source)
    for measure, where in PER_LEVEL.items():
        for level in range(num_levels):
            found[f"{measure}, level {level}"] = where(report, level)
    for kind in ("prefix", "random"):
        found[f"category agreement of cold items, {kind}"] = _at(report, "cold_start", "agreement", "cold", kind)
    return found


def _at(report: JsonObject, *path: str) -> Any:
    """What stands at a path of keys; None where a part of it is absent or null."""
    for key in path:
        report = (report or {}).get(key)
    return report


def _of_level(report: JsonObject, section: Sequence[str], level: int, key: str) -> Any:
    """A number of one level; None where the report has no such level."""
    return next((of[key] for of in _at(report, *section) or () if of["level"] == level), None)


def _above_null(report: JsonObject, level: int) -> float | None:
    cosine, null = (_of_level(report, ["index_consistency"], level, key) for key in ("cosine", "null_mean"))
    return None if cosine is None else cosine - null


PER_LEVEL = {
    "perplexity / codes": lambda report, level: _of_level(report, ["levels"], level, "perplexity_share"),
    "entropy given prefix": lambda report, level: _of_level(report, ["levels"], level, "conditional_entropy_bits"),
    "index consistency above null": _above_null,
    "history overlap above null": lambda report, level: _of_level(
        report, ["history_overlap", "levels"], level, "difference"
    ),
}


def show_comparison(compared: dict[str, dict[str, float | None]]) -> None:
    """Print what `compare` returned."""
    names: Sequence[str] = list(next(iter(compared.values())))
    rows = [[measure, *("-" if of[name] is None else of[name] for name in names)] for measure, of in compared.items()]
    table("Semantic IDs beside each other", ("", *names), rows)
