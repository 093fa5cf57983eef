"""Verdicts of the data report: what the facts mean for whoever trains on the data, and what to do about it.

Each verdict is a sentence or two that can be read without knowing llmrec. `good` needs nothing, `note` is worth
knowing, `warning` may make results wrong or worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from llmrec.data.report.ids import SAYS
from llmrec.data.report.steps import ROUND, whole
from llmrec.runtime.manifest import JsonObject

# Shares from which a fact is told, and from which it is a warning. They are judgements: what a reader would act on.
LOST, MANY_TIES, COMES_BACK, NO_TITLE, COLD, ONE_USER, CONCENTRATED = 0.5, 0.05, 0.2, 0.05, 0.05, 0.05, 0.5
LAST_AGAIN = 0.2
LONG_GAP = 0.1  # of the span of the log
FEW_EXAMPLES = 500  # test examples; a recall of .1 is known to .026 then
SUSPICIOUS = 0.9  # recall of a baseline


class Verdict(NamedTuple):
    """Meaning of a fact.

    Attributes:
        kind: good, note or warning.
        says: The fact and its consequence.
        remedy: What to do, or "".
    """

    kind: Literal["good", "note", "warning"]
    says: str
    remedy: str = ""


def verdicts(report: JsonObject) -> list[JsonObject]:
    """Judge the facts of a report, the warnings first.

    Args:
        report: Content of the report but for `verdicts`.

    Returns:
        kind, says and remedy of each verdict.
    """
    found = [*_kept(report), *_unknown_items(report), *_repeats(report), *_ids(report), *_times(report)]
    found += [*_users(report), *_fields(report), *_held_out(report), *_baselines(report)]
    return [verdict._asdict() for kind in ("warning", "note", "good") for verdict in found if verdict.kind == kind]


def _kept(report: JsonObject) -> Iterator[Verdict]:
    first, last = whole(report["steps"]), report["steps"][-1]
    shares = {name: last[name] / first[name] for name in ("users", "items", "interactions")}
    said = ", ".join(f"{last[name]:,} of {first[name]:,} {name} ({shares[name]:.0%})" for name in shares)
    core = [step for step in report["steps"] if ROUND in step["name"]]
    if min(shares["users"], shares["interactions"]) < LOST and core:
        k = core[0]["name"].partition("-core")[0]
        yield Verdict(
            "warning",
            f"The filters keep {said}. Results speak of these users and items only.",
            f"A --k-core below {k} keeps users and items with fewer interactions; --k-core 0 keeps all.",
        )
    elif min(shares.values()) < 1:
        yield Verdict("note", f"The filters keep {said}.")
    else:
        yield Verdict("good", "All interactions that were read are kept.")


def _unknown_items(report: JsonObject) -> Iterator[Verdict]:
    unknown, read = report["unknown_items"], report["steps"][0]["interactions"]
    if unknown["interactions"] >= LOST * max(read, 1):
        yield Verdict(
            "warning",
            f"{unknown['interactions']:,} of {read:,} interactions that were read are with items that the item file "
            f"lacks, and are {'dropped' if unknown['dropped'] else 'kept'}.",
            "Check that both files have the same ids in their columns of items (--item-column, --item-file-column).",
        )
    if unknown["dropped"] and unknown["look_alike"]:  # kept ones are among the ids that look alike
        yield Verdict(
            "warning",
            f"Interactions are dropped although their items may be known: {unknown['look_alike']}.",
            "If they are the same, write them in one form in both files and run prepare again.",
        )


def _repeats(report: JsonObject) -> Iterator[Verdict]:
    rows, dropped = report["exact_repeats"]["rows"], report["exact_repeats"]["dropped"]
    all_rows = whole(report["steps"])["interactions"]
    if rows and dropped:
        yield Verdict(
            "note" if rows < all_rows * 0.01 else "warning",
            f"{rows:,} of {all_rows:,} rows ({rows / all_rows:.1%}) repeat the user, item and time of an earlier row. "
            "They are dropped, as a log that was written twice has them.",
            "If each of them is an event of its own, give --duplicates keep.",
        )
    elif rows:
        yield Verdict(
            "warning",
            f"{rows:,} of {all_rows:,} rows ({rows / all_rows:.1%}) repeat the user, item and time of an earlier row, "
            "and are kept. Where a held-out item repeats the one before it, whoever repeats the last item is right.",
            "Give --duplicates drop if the log was written or joined twice.",
        )
    share = report["behaviour"]["repeats"]["share"]
    if share >= COMES_BACK:
        yield Verdict(
            "note",
            f"Users come back to the same item: {share:.0%} of the interactions are with an item that the user had "
            "before.",
            "In evaluations, read the results where items of the history may be returned (plain). Where they are left "
            "out (seen_excluded), every return counts as a miss.",
        )


def _ids(report: JsonObject) -> Iterator[Verdict]:
    for name, facts in report["ids"].items():
        for kind, groups in facts["look_alikes"]["kinds"].items():
            pairs = "; ".join(" and ".join(map(shown, group)) for group in groups["examples"])
            cases = "one case" if groups["groups"] == 1 else f"{groups['groups']:,} cases"
            yield Verdict(
                "warning",
                f"Ids of {name} look alike in {cases}: {pairs}. They are {SAYS[kind]}, and count as different {name}.",
                "If they are the same, write them in one form in all files and run prepare again.",
            )
        if facts["nothing"]:
            ids = ", ".join(
                f"{shown(name_of_nothing)} in {rows:,}" for name_of_nothing, rows in facts["nothing"].items()
            )
            yield Verdict(
                "warning",
                f"Some ids of {name} read like missing values ({ids} of the interactions). All {name} without an id "
                "would be taken for one.",
                "Fill in the ids or drop these rows, unless they are real ids.",
            )


def _times(report: JsonObject) -> Iterator[Verdict]:
    times, ties = report["times"], report["ties"]
    if times is None:
        yield Verdict(
            "note", "There are no times: histories are in the order of the file, and cannot be split by time."
        )
        return
    if times["unit"]:
        yield Verdict("good", f"Times are {times['unit']} since 1970, from {times['first']} to {times['last']}.")
    if times["outside"]:
        yield Verdict(
            "warning",
            f"{times['outside']:,} times are no dates between 1990 and 2100, such as {times['outside_example']}, "
            "though the others are. They stand at the wrong end of their histories.",
            "Correct them or drop their rows.",
        )
    gap = times.get("longest_gap_days", 0)
    if gap >= max(7, LONG_GAP * times.get("days", 0)):
        yield Verdict(
            "note",
            f"There is not one interaction for {gap:,} days between {times['gap_from']} and {times['gap_to']}.",
            "Check whether a part of the log is missing.",
        )
    if ties["last"] >= MANY_TIES:
        yield Verdict(
            "warning",
            f"{ties['last']:.0%} of the users have different items at one time among their last three. The order of "
            "the file decides there what is tested, and it may be sorted by item.",
            "Give finer times if there are any, or sort the rows of one time as they happened.",
        )
    elif ties["users"] >= MANY_TIES:
        yield Verdict(
            "note",
            f"{ties['users']:.0%} of the users have different items at the same time. These stay in the order of the "
            f"file, which decides for {ties['last']:.1%} of the users what is tested.",
        )
    elif ties["users"]:
        percent = f"{100 * ties['users']:.2g}%"
        yield Verdict(
            "good",
            f"Times put nearly every history in order; {percent} of the users have different items at the same time.",
        )
    else:
        yield Verdict("good", "Times put every history in order.")


def _users(report: JsonObject) -> Iterator[Verdict]:
    behaviour = report["behaviour"]
    longest, top = behaviour["histories"]["share_of_longest"], behaviour["popularity"]["top_1"]
    if longest >= ONE_USER and behaviour["users"] >= 100:
        yield Verdict(
            "warning",
            f"One user has {longest:.0%} of all interactions, which is rarely a person.",
            "Drop a user who is a robot, a test account or the name of a missing value.",
        )
    if top >= CONCENTRATED and behaviour["items"] >= 100:
        yield Verdict(
            "note",
            f"The most popular 1% of the items have {top:.0%} of the interactions; popularity is hard to beat.",
        )


def _fields(report: JsonObject) -> Iterator[Verdict]:
    fields = report["fields"]
    without, every = fields["no_title"], fields["items"]
    if without == every and fields["no_text"] == every:
        yield Verdict(
            "warning",
            "No item has a title or text, so nothing can be learned from words, and answers show ids alone.",
            "With files of your own, give --items, a file with a title for each item. Or build item vectors from "
            "behaviour: llmrec embed --views sasrec.",
        )
    elif without >= NO_TITLE * every:
        yield Verdict(
            "note",
            f"{without:,} of {every:,} items ({without / every:.0%}) have no title; answers show their ids alone.",
        )
    else:
        yield Verdict("good", f"All but {without:,} items have a title." if without else "Every item has a title.")


def _held_out(report: JsonObject) -> Iterator[Verdict]:
    test = report["split"]["test"]
    if test["examples"] < FEW_EXAMPLES:
        width = 1.96 * math.sqrt(0.1 * 0.9 / test["users"])
        yield Verdict(
            "note",
            f"There are only {test['examples']:,} test examples of {test['users']:,} users. A recall of .10 is "
            f"uncertain by ± {width:.2f}, so most differences between models cannot be seen.",
            "Give more data or lower --k-core, and read intervals before means.",
        )
    if test["last_again"] >= LAST_AGAIN:
        yield Verdict(
            "warning",
            f"For {test['last_again']:.0%} of the test examples, the item to be found is the one just before it, as "
            "where a page was reloaded or two exports were joined. Whoever repeats the last item is right.",
            "If these are no events of their own, drop all but the first of them from the log.",
        )
    if test["cold"] >= COLD:
        yield Verdict(
            "warning",
            f"{test['cold']:.0%} of the test targets are items without any training interaction. Popularity, Markov "
            "and SASRec cannot find them.",
            "Give items text, and use views that do not need behaviour, such as text.",
        )


def _baselines(report: JsonObject) -> Iterator[Verdict]:
    reached = report["baselines"]
    k = reached["k"]
    popular, markov = (reached["systems"][name]["plain"][f"recall@{k}"]["mean"] for name in ("popularity", "markov"))
    yield Verdict(
        "note",
        f"For {popular:.1%} of the histories, the next item is one of the {k} most popular items. For {markov:.1%}, it "
        f"is one of the {k} that most often followed the last item (Markov). A model has to beat both.",
    )
    if max(popular, markov) >= SUSPICIOUS and report["fields"]["items"] > 5 * k:
        yield Verdict(
            "warning",
            "Counting finds nearly every held-out item, which real data seldom allows.",
            "Look for repeated rows, for users with the same history, and for a column that gives the answer away.",
        )


def shown(text: str) -> str:
    """An id of a user's data as a person may see it: quoted, blanks and control characters visible, not too long."""
    return repr(text if len(text) <= 40 else text[:40] + "…")
