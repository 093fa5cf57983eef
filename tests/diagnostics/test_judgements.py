"""What is said of semantic IDs follows from their report; cases by hand around each threshold."""

from __future__ import annotations

import pytest

from llmrec.diagnostics.judgements import judgements, suffix_level


def report(shared=0.0, before=0.1, use=(0.9, 0.8), prefix=0.2, **changes) -> dict:
    levels = [{"level": i, "codebook_size": 16, "perplexity_share": share} for i, share in enumerate(use)]
    return {
        "num_items": 1200,
        "after_policy": {"shared_items": shared},
        "before_policy": {"shared_items": before, "max_bucket": 3},
        "levels": levels,
        "neighbours": {"behaviour": {"prefix": prefix, "random": 0.02}, "text": None},
        **changes,
    }


def kinds(**changes) -> list[str]:
    return [judgement.kind for judgement in judgements(report(**changes))]


def test_good_semantic_ids_are_told_in_numbers():
    assert [judgement.says for judgement in judgements(report())] == [
        "Each of the 1,200 items has a semantic ID of its own.",
        "The learned codes alone are shared by 10% of the items, at most 3 with the same ones.",
        "Codes are in even use at every level (80% or more of the possible variety).",
        "Items that users take together have the first codes in common 10.0 times as often as by chance.",
    ]
    assert kinds() == ["good"] * 4


@pytest.mark.parametrize(
    ("changes", "place", "kind", "says"),
    [
        ({"shared": 0.2}, 0, "look", "--collision suffix_ordinal makes them distinct"),
        ({"shared": 0.5}, 0, "bad", "50% of the items share"),
        ({"before": 0.5}, 1, "look", "--codebook-size"),
        ({"before": 0.9}, 1, "bad", "shared by 90%"),
        ({"use": (0.9, 0.3)}, 2, "look", "Level 1 uses 30% of the variety of its 16 codes"),
        ({"use": (0.05, 0.9)}, 2, "bad", "Level 0 uses 5% of the variety of its 16 codes: it has collapsed"),
        ({"use": (None, 0.9)}, 2, "bad", "Level 0 uses 0%"),
        ({"prefix": 0.06}, 3, "look", "3.0 times"),
        ({"prefix": 0.02}, 3, "bad", "1.0 times"),
    ],
)
def test_what_is_not_good_has_a_remedy(changes, place, kind, says):
    judgement = judgements(report(**changes))[place]
    assert judgement.kind == kind and says in judgement.says
    assert kinds(**changes).count("good") == 3


def test_a_suffix_is_named_and_not_judged():
    with_suffix = report(use=(0.9, 0.8, 0.01), learned_levels=2)
    assert suffix_level(with_suffix) == 2 and suffix_level(report()) is None
    *graded, last = judgements(with_suffix)
    assert {judgement.kind for judgement in graded} == {"good"}
    assert last.kind == "" and last.says.startswith("Level 2 is the suffix") and "no collapse" in last.says


def test_sides_that_were_not_measured_are_left_out():
    assert len(judgements(report(neighbours=None))) == 3
