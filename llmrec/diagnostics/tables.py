"""Tables and sentences that show a report on semantic IDs: a judgement on the terminal, all of it on the page.

What is printed fits into 80 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmrec.diagnostics.judgements import judgements, suffix_level
from llmrec.runtime.console import table, tell
from llmrec.runtime.manifest import JsonObject

LEVEL_KEYS = ("codebook_size", "used", "usage", "entropy_bits", "perplexity_share", "kl_bits")
SOURCES = ("vectors", "quantised", "prefix", "random")
Cell = str | float | None  # None where a measure does not exist


class ReportTable(NamedTuple):
    """One table of a report.

    Attributes:
        title: Title.
        note: Explanation, which only the page shows.
        header: Names of the columns.
        rows: Cells of each line; the first is text.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def show(report: JsonObject) -> None:
    """Print a judgement of the semantic IDs and the use of their levels; the page has every table."""
    for judgement in judgements(report):
        tell(f"{judgement.kind}: {judgement.says}" if judgement.kind else judgement.says)
    for line in report.get("notes", []):
        tell(line)
    part = _levels(report)
    table(part.title, part.header, [["-" if cell is None else cell for cell in row] for row in part.rows])


def tables(report: JsonObject) -> list[ReportTable]:
    """All tables of a report."""
    parts = [_collisions(report), _levels(report), _tree(report), _neighbours(report), _consistency(report)]
    parts += [_overlap(report), _cold_start(report)]
    return [part for part in parts if part.rows]


def facts(report: JsonObject) -> list[str]:
    """The measures that are told in sentences, and the notes of the stage."""
    lines = [f"Expected collision rate of uniform codes: {report['expected_collision_rate']:.4f}."]
    if tree := report.get("tree"):
        lines.append(
            f"The prefix tree is filled to {tree['fill_ratio']:.2e}; {tree['leaf_singletons']:.1%} of the SIDs are "
            "alone under their last prefix."
        )
    if reconstruction := report.get("reconstruction"):
        lines.append(f"Mean cosine of items and their reconstruction: {reconstruction['cosine']:.4f}.")
        if reconstruction["separability"] is not None:
            lines.append(
                f"{reconstruction['separability']:.1%} of the reconstructions are nearest to their own vector among "
                f"{reconstruction['batch']}."
            )
    if sample := report.get("sample"):
        lines.append(
            f"Neighbours were measured for {sample['queries']} items among {sample['items']}, drawn with seed "
            f"{sample['seed']}."
        )
    return [*lines, *report.get("notes", [])]


def level_name(report: JsonObject, level: JsonObject) -> str:
    """Number of a level; the suffix is named as such."""
    return f"{level['level']} (suffix)" if level["level"] == suffix_level(report) else str(level["level"])


def _collisions(report: JsonObject) -> ReportTable:
    keys = ("collision_rate", "shared_items", "max_bucket", "expected_bucket", "gini")
    return ReportTable(
        f"Collisions of {report['num_items']} items",
        "Items in shared SIDs have a SID that another item has, too. The expected bucket is the number of items that "
        "share the SID of the item of a random training interaction. Gini is 0 if all SIDs have equally many items.",
        ("", "collision rate", "in shared SIDs", "largest bucket", "expected bucket", "Gini"),
        [[name.replace("_", " "), *map(report[name].get, keys)] for name in ("before_policy", "after_policy")],
    )


def _levels(report: JsonObject) -> ReportTable:
    return ReportTable(
        "Codes per level",
        "The codes of uniformly drawn items. Perplexity is 2^entropy, the number of equally frequent codes that would "
        "be as varied. Entropy and KL are in bits.",
        ("level", "codes", "used", "usage", "entropy", "perplexity / codes", "KL to uniform"),
        [[level_name(report, of), *map(of.get, LEVEL_KEYS)] for of in report["levels"]],
    )


def _tree(report: JsonObject) -> ReportTable:
    return ReportTable(
        "Prefix tree",
        "Entropy of a code given the codes before it. For uniformly drawn items with distinct SIDs the levels add up "
        "to log2 of the items, whatever the tokenizer. For training interactions it is Miller-Madow corrected.",
        ("level", "entropy given prefix (bits)", "by training", "mean branches", "most branches"),
        [
            [
                str(of["level"]),
                of["conditional_entropy_bits"],
                (of.get("training") or {}).get("conditional_entropy_bits"),
                of.get("branching_mean"),
                of.get("branching_max"),
            ]
            for of in report["levels"]
        ],
    )


def _neighbours(report: JsonObject) -> ReportTable:
    neighbours, reconstruction = report.get("neighbours") or {}, report.get("reconstruction") or {}
    rows: list[list[Cell]] = [
        [kind, neighbours[kind]["queries"], *map(neighbours[kind].get, SOURCES)]
        for kind in ("behaviour", "text")
        if neighbours.get(kind)
    ]
    if reconstruction.get("knn_overlap") is not None:
        overlap = (reconstruction["knn_overlap"], None, reconstruction["knn_overlap_random"])
        rows.append(["vectors", report["sample"]["queries"], 1.0, *overlap])
    k = neighbours.get("k", reconstruction.get("k"))
    return ReportTable(
        f"Share of an item's neighbours that are among the {k} nearest by",
        "Behaviour neighbours are the ten items that are most often within five steps of an item in the training "
        "sequences. Text neighbours are the ten nearest by the view 'text'. Vectors are the input of the quantiser. "
        "Items that tie for the last places share them.",
        ("neighbours by", "items", "vectors", "quantised", "common prefix", "chance"),
        rows,
    )


def _consistency(report: JsonObject) -> ReportTable:
    return ReportTable(
        "Offsets from the parent that share a code",
        "Mean cosine of the offsets between child and parent centroids, over children with the same code under "
        "different parents. Well above the permuted value, a code has one meaning under all parents; near it, the "
        "meaning of a code depends on its parent.",
        ("level", "pairs", "cosine", "permuted within parents", "sd of permutations"),
        [
            [str(of["level"]), of["pairs"], of["cosine"], of["null_mean"], of["null_sd"]]
            for of in report.get("index_consistency") or ()
        ],
    )


def _overlap(report: JsonObject) -> ReportTable:
    overlap = report.get("history_overlap") or {"examples": 0, "levels": []}
    levels = overlap["levels"] if overlap["examples"] else []
    return ReportTable(
        f"Target's code in the history, {overlap['examples']} training examples",
        "Share of the training targets whose code at a level also occurs in the history, and the same for targets "
        "drawn by training popularity.",
        ("level", "observed", "target by popularity", "difference"),
        [[str(of["level"]), of["observed"], of["null"], of["difference"]] for of in levels],
    )


def _cold_start(report: JsonObject) -> ReportTable:
    measured = report.get("cold_start") or {}
    rows: list[list[Cell]] = []
    if measured.get("distance"):
        for kind, name in (("cold", "none"), ("warm", "some")):
            rows.append([name, measured["items"][kind], *map(measured["distance"][kind].get, ("q10", "q50", "q90"))])
    return ReportTable(
        "Items by training interactions: distance to the nearest first code",
        "Quantiles of the distance to the nearest mean of the items that share a first code and have training "
        "interactions.",
        ("training", "items", "q10", "q50", "q90"),
        rows,
    )
