"""Verdicts: a report without faults has no warning, and each fault brings its own."""

from __future__ import annotations

import copy

import pytest

from llmrec.data.report.verdicts import shown, verdicts

GOOD = {
    "steps": [{"name": "read", "users": 900, "items": 300, "interactions": 9000}],
    "unknown_items": {"items": 0, "interactions": 0, "dropped": False, "look_alike": None},
    "exact_repeats": {"rows": 0, "dropped": False},
    "ids": {kind: {"look_alikes": {"groups": 0, "ids": 0, "kinds": {}}, "nothing": {}} for kind in ("users", "items")},
    "times": {"unit": "seconds", "first": "2020-01-01", "last": "2020-12-30", "outside": 0, "days": 365,
              "longest_gap_days": 0},
    "ties": {"users": 0.0, "last": 0.0},
    "behaviour": {"users": 900, "items": 300, "interactions": 9000, "repeats": {"share": 0.0},
                  "histories": {"share_of_longest": 0.01}, "popularity": {"top_1": 0.1}},
    "fields": {"items": 300, "no_title": 0, "no_text": 0},
    "split": {"test": {"examples": 900, "users": 900, "cold": 0.0, "last_again": 0.0}},
    "baselines": {"k": 10, "systems": {name: {"plain": {"recall@10": {"mean": mean}}}
                                       for name, mean in (("popularity", 0.1), ("markov", 0.2))}},
}  # fmt: skip


def changed(path: str, value: object) -> dict:
    report = copy.deepcopy(GOOD)
    *way, last = path.split("/")
    place = report
    for key in way:
        place = place[key]
    place[last] = value
    return report


def warnings(report: dict) -> list[str]:
    return [f"{verdict['says']} {verdict['remedy']}" for verdict in verdicts(report) if verdict["kind"] == "warning"]


def test_good_data_brings_no_warning():
    found = verdicts(GOOD)
    assert warnings(GOOD) == [] and "good" in {verdict["kind"] for verdict in found}
    assert any("10.0% of the histories" in verdict["says"] and "20.0%" in verdict["says"] for verdict in found)


CORE = [*GOOD["steps"], {"name": "5-core, round 1", "users": 90, "items": 30, "interactions": 3000}]
LOOK_ALIKES = {"groups": 7, "ids": 14, "kinds": {"number": {"groups": 7, "examples": [["3", "3.0"]]}}}
FAULTS = {
    "k-core": ("steps", CORE, "keep 90 of 900 users (10%)", "A --k-core below 5"),
    "unknown items": ("unknown_items", {"items": 9, "interactions": 6000, "dropped": False, "look_alike": "'3'"},
                      "6,000 of 9,000 interactions that were read", "--item-file-column"),
    "dropped look-alikes": ("unknown_items", {"items": 1, "interactions": 5, "dropped": True,
                            "look_alike": "'p3 ' looks like 'p3' there"}, "'p3 ' looks like 'p3' there", "in one form"),
    "dropped repeats": ("exact_repeats", {"rows": 900, "dropped": True}, "900 of 9,000 rows (10.0%)", "keep"),
    "kept repeats": ("exact_repeats", {"rows": 2, "dropped": False}, "2 of 9,000 rows", "--duplicates drop"),
    "look-alikes": ("ids/items/look_alikes", LOOK_ALIKES, "look alike in 7 cases: '3' and '3.0'", "in one form"),
    "no id": ("ids/users/nothing", {"nan": 3}, "'nan' in 3 of the interactions", "drop these rows"),
    "wrong times": ("times/outside", 4, "4 times are no dates", "Correct them"),
    "ties": ("ties/last", 0.4, "40% of the users", "finer times"),
    "one user": ("behaviour/histories/share_of_longest", 0.3, "One user has 30%", "robot"),
    "no titles": ("fields", {"items": 300, "no_title": 300, "no_text": 300}, "No item has a title", "give --items"),
    "cold targets": ("split/test/cold", 0.2, "20% of the test targets", "text"),
    "reloads": ("split/test/last_again", 0.5, "For 50% of the test examples, the item to be found is", "but the first"),
    "too good": ("baselines/systems/markov/plain/recall@10/mean", 0.99, "Counting finds nearly", "repeated rows"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_with_its_remedy(fault):
    path, value, says, remedy = FAULTS[fault]
    report = changed(path, value)
    report["times"].setdefault("outside_example", 0)
    (warning,) = warnings(report)
    assert says in warning and remedy in warning


def test_returns_gaps_and_concentration_are_notes():
    for path, value in (
        ("behaviour/repeats/share", 0.5),
        ("times/longest_gap_days", 80),
        ("behaviour/popularity/top_1", 0.8),
        ("split/test/examples", 9),
        ("ties/users", 0.3),
        ("exact_repeats", {"rows": 5, "dropped": True}),
    ):
        report = changed(path, value)
        report["times"] |= {"gap_from": "2020-02-01", "gap_to": "2020-04-21"}
        notes = [verdict for verdict in verdicts(report) if verdict["kind"] == "note"]
        assert warnings(report) == [] and len(notes) == 2  # and what a model has to beat


def test_few_ties_are_told_as_few_and_none_as_none():
    for share, says in (
        (0.0, "every history in order."),
        (0.0004, "nearly every history in order; 0.04% of the users"),
    ):
        assert sum(says in verdict["says"] for verdict in verdicts(changed("ties/users", share))) == 1


def test_without_times_nothing_is_said_of_ties():
    said = [verdict["says"] for verdict in verdicts(GOOD | {"times": None, "ties": None})]
    assert any("There are no times" in sentence for sentence in said)


def test_an_id_is_shown_with_its_blanks_and_cut():
    assert shown("p3 \x1b[2J") == r"'p3 \x1b[2J'" and len(shown("x" * 500)) == 43
