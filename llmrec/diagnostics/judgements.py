"""Judgements of semantic IDs in plain words: what is good, what to look at, and what is bad, with a remedy.

The thresholds are rules of thumb. What a semantic ID is worth is seen in an evaluation of the model that uses it.
"""

from __future__ import annotations

from typing import NamedTuple

from llmrec.runtime.manifest import JsonObject

GOOD, LOOK, BAD = "good", "look", "bad"
EVEN, COLLAPSED = 0.5, 0.1  # shares of the codes that are in even use; below a tenth the stage refuses by default
FEW_SHARE, MANY_SHARE = 0.3, 0.7  # shares of the items that would share their codes without a policy
CLEAR, FAINT = 5.0, 2.0  # times that neighbours under a common prefix are more frequent than by chance


class Judgement(NamedTuple):
    """A sentence on one side of semantic IDs.

    Attributes:
        kind: good, look or bad; empty for an explanation.
        says: The sentence, with what to do where it is not good.
    """

    kind: str
    says: str


def judgements(report: JsonObject) -> list[Judgement]:
    """Judge a report of `llmrec tokenize`, from the most important side to the least."""
    found = [_distinct(report), _collisions(report), _use(report), *_neighbours(report)]
    suffix = suffix_level(report)
    if suffix is not None:
        found.append(
            Judgement(
                "",
                f"Level {suffix} is the suffix, which numbers the items that have the same codes. It is counted, "
                "not learned, and most items have its first code or none, so its low use is no collapse.",
            )
        )
    return found


def suffix_level(report: JsonObject) -> int | None:
    """Level that a collision policy has added; None if there is none, or the report does not say."""
    learned = report.get("learned_levels", len(report["levels"]))
    return learned if len(report["levels"]) > learned else None


def _distinct(report: JsonObject) -> Judgement:
    shared = report["after_policy"]["shared_items"]
    if shared == 0:
        return Judgement(GOOD, f"Each of the {report['num_items']:,} items has a semantic ID of its own.")
    return Judgement(
        LOOK if shared < FEW_SHARE else BAD,
        f"{shared:.0%} of the items share their semantic ID with another item, which a model then cannot tell apart. "
        "--collision suffix_ordinal makes them distinct.",
    )


def _collisions(report: JsonObject) -> Judgement:
    shared, most = report["before_policy"]["shared_items"], report["before_policy"]["max_bucket"]
    kind = GOOD if shared <= FEW_SHARE else LOOK if shared <= MANY_SHARE else BAD
    says = f"The learned codes alone are shared by {shared:.0%} of the items, at most {most:,} with the same ones."
    return Judgement(kind, says if kind == GOOD else f"{says} More codes (--codebook-size) or levels tell more apart.")


def _use(report: JsonObject) -> Judgement:
    if "pieces" in report:
        return Judgement(
            "",
            f"All levels have the same {report['pieces']:,} pieces. Most are of several items and stand in histories "
            "alone, so the low use of a level is no collapse.",
        )
    suffix = suffix_level(report)
    levels = [of for of in report["levels"] if of["level"] != suffix]
    worst = min(levels, key=lambda of: of["perplexity_share"] or 0.0)
    share = worst["perplexity_share"] or 0.0
    if share >= EVEN:
        return Judgement(GOOD, f"Codes are in even use at every level ({share:.0%} or more of the possible variety).")
    where = f"Level {worst['level']} uses {share:.0%} of the variety of its {worst['codebook_size']:,} codes"
    if share >= COLLAPSED:
        return Judgement(LOOK, f"{where}. Fewer codes, or --balance capacity of rq_kmeans, use them more evenly.")
    return Judgement(BAD, f"{where}: it has collapsed. Check the views, and lower --codebook-size.")


def _neighbours(report: JsonObject) -> list[Judgement]:
    neighbours = report.get("neighbours") or {}
    names = {"behaviour": "Items that users take together", "text": "Items with similar texts"}
    found = []
    for kind, name in names.items():
        of = neighbours.get(kind)
        if of and of.get("prefix") is not None and of.get("random"):
            times = of["prefix"] / of["random"]
            grade = GOOD if times >= CLEAR else LOOK if times >= FAINT else BAD
            says = f"{name} have the first codes in common {times:.1f} times as often as by chance."
            remedy = " Check that its view is among those of embed, and its weight." if grade != GOOD else ""
            found.append(Judgement(grade, says + remedy))
    return found
