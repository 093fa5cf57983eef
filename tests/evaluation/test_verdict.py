"""The verdict says who is ahead and whether that is certain, as the means and intervals have it; cases by hand."""

from __future__ import annotations

import pytest

from llmrec.evaluation.verdict import of_comparison, of_evaluation

PLAIN, EXCLUDED = "if items of the history may be returned", "if items of the history are left out"


def metrics(ours: dict, others: dict, intervals: dict | None = None) -> dict:
    """Content of metrics.json: {column: ndcg}, name -> {column: ndcg}, name -> half width of the interval."""
    widths = intervals or {}
    systems = {"ours": ours, **others}
    return {
        "k": [5, 10],
        "num_users": 1234,
        "systems": {
            name: {
                column: {"ndcg@10": value, "recall@10": 0.0, "intervals": {"ndcg@10": [value - 0.01, value + 0.01]}}
                for column, value in of.items()
            }
            for name, of in systems.items()
        },
        "differences": {
            name: {
                column: {
                    "ndcg@10": {
                        "mean": ours[column] - value,
                        "low": ours[column] - value - widths.get(name, 0.01),
                        "high": ours[column] - value + widths.get(name, 0.01),
                    }
                }
                for column, value in of.items()
            }
            for name, of in others.items()
        },
    }


def test_the_model_is_ahead_of_all_and_it_is_certain():
    """The next best is named, in the column where the best system is better."""
    found = of_evaluation(
        metrics(
            {"plain": 0.05, "seen_excluded": 0.09},
            {"markov": {"plain": 0.03, "seen_excluded": 0.06}, "popularity": {"plain": 0.01, "seen_excluded": 0.02},
             "item_knn": {"plain": 0.02, "seen_excluded": 0.01}},
        )
    )  # fmt: skip
    assert found == [
        f"The model (ours) is ahead of all 3 others: ndcg@10 is 0.0900 against 0.0600 of markov, the next, {EXCLUDED}.",
        "This is certain: the 95 % interval of the lead over 1,234 users, [+0.0200, +0.0400], excludes 0.",
    ]


def test_a_baseline_is_ahead_and_the_interval_is_that_of_its_lead():
    found = of_evaluation(
        metrics({"plain": 0.05, "seen_excluded": 0.04}, {"markov": {"plain": 0.08, "seen_excluded": 0.07}})
    )
    assert found == [
        f"markov is ahead of the model (ours): ndcg@10 is 0.0800 against 0.0500 {PLAIN}.",
        "This is certain: the 95 % interval of the lead over 1,234 users, [+0.0200, +0.0400], excludes 0.",
    ]


def test_a_lead_within_the_interval_is_not_certain():
    found = of_evaluation(
        metrics(
            {"plain": 0.05, "seen_excluded": 0.04},
            {"markov": {"plain": 0.045, "seen_excluded": 0.03}, "repeat": {"plain": 0.0, "seen_excluded": 0.0}},
        )
    )
    assert found[0].startswith("The model (ours) is ahead of both others: ndcg@10 is 0.0500 against 0.0450 of markov")
    assert found[1] == (
        "This is not certain: the 95 % interval of the lead over 1,234 users, [-0.0050, +0.0150], contains 0."
    )


@pytest.mark.parametrize(("other", "how"), [(0.045, "not certain"), (0.09, "certain")])
def test_the_other_column_is_named_where_it_says_the_opposite(other, how):
    found = of_evaluation(
        metrics({"plain": 0.10, "seen_excluded": 0.04}, {"markov": {"plain": 0.03, "seen_excluded": other}})
    )
    assert found[0].startswith("The model (ours) is ahead of markov: ndcg@10 is 0.1000")
    assert found[1].endswith(f"excludes 0; {EXCLUDED}, markov is ahead ({how}).")


def test_level_systems_have_no_winner():
    found = of_evaluation(
        metrics({"plain": 0.0, "seen_excluded": 0.0}, {"markov": {"plain": 0.0, "seen_excluded": 0.0}}, {"markov": 0.0})
    )
    assert found == [
        f"The model (ours) and markov are level: ndcg@10 is 0.0000 for both {PLAIN}.",
        "The 95 % interval of the difference over 1,234 users is [+0.0000, +0.0000].",
    ]


def test_a_model_alone_is_told_with_its_interval():
    first, second = of_evaluation(metrics({"plain": 0.02, "seen_excluded": 0.05}, {}))
    assert first == f"The model (ours) has ndcg@10 0.0500, 95 % interval [0.0400, 0.0600], {EXCLUDED}."
    assert "no other system" in second


def test_a_comparison_is_told_from_the_first_run():
    """`compare` keeps differences to the first run, whose sign is the opposite."""
    result = {
        "k": [10],
        "num_users": 9,
        "systems": {name: {column: {"ndcg@10": {"mean": mean}} for column in ("plain", "seen_excluded")}
                    for name, mean in (("base", 0.1), ("tuned", 0.3))},
        "differences": {"tuned": {column: {"ndcg@10": {"mean": 0.2, "low": 0.1, "high": 0.3}}
                                  for column in ("plain", "seen_excluded")}},
    }  # fmt: skip
    assert of_comparison(result) == [
        f"tuned is ahead of base: ndcg@10 is 0.3000 against 0.1000 {PLAIN}.",
        "This is certain: the 95 % interval of the lead over 9 users, [+0.1000, +0.3000], excludes 0.",
    ]
    seeds = {**result, "systems": {"base": result["systems"]["base"]}, "differences": {}}
    assert of_comparison(seeds) == [
        "All runs are called base, so there is nothing to compare; give them different --names."
    ]
