"""The curves of a tokenizer's training, and the page of grpo."""

from __future__ import annotations

import itertools

from llmrec.reports import grpo
from llmrec.reports.tokenizer_training import MOST_POINTS, thinned, trainings
from tests.reports.test_evaluation_page import Balanced

LOG = [{"step": 100 * i, "loss": 1.0 / (i + 1), "code_use": [0.5, 0.25], "norms": {"in": 1.0, "out": 2.0}}
       for i in range(3)]  # fmt: skip


def test_every_part_of_a_training_log_has_a_figure_and_several_lines_a_legend():
    (training,) = trainings([LOG])
    assert training["title"] == "Training" and training["has_metrics"]
    loss, use, norms = training["figures"]
    assert (loss.caption, use.caption, norms.caption) == ("loss", "code use", "norms")
    assert not loss.legend
    assert [line.name for line in use.legend] == ["level 0", "level 1"]
    assert [(line.name, line.y) for line in norms.legend] == [("in", [1.0] * 3), ("out", [2.0] * 3)]


def test_several_trainings_are_numbered_and_none_is_no_section():
    plain = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]
    both = trainings([plain, plain])
    assert [training["title"] for training in both] == ["Training 1 of 2", "Training 2 of 2"]
    assert not any(training["has_metrics"] for training in both)
    assert trainings(None) == []


def test_a_long_log_is_thinned_evenly_and_keeps_its_last_entry():
    log = [{"step": step, "loss": 0.0} for step in range(1000)]
    kept = [entry["step"] for entry in thinned(log)]
    assert len(kept) <= MOST_POINTS and kept[-1] == 999
    assert {after - before for before, after in itertools.pairwise(kept)} == {17}


def test_the_page_of_grpo_has_a_plot_for_each_part_of_the_log_that_is_there():
    log = [{"step": 1, "reward": 0.1, "expected_reward": 0.2, "kl": 0.0}, {"step": 2, "reward": 0.3, "kl": 0.01}]
    page = Balanced(grpo.render(log, "<b>run</b>"))
    assert "Training of <b>run</b>" in page.texts
    captions = {caption for caption, _ in grpo.PLOTS}
    assert captions & set(page.texts) == {"Reward", "KL divergence from the start, per code"}
    assert page.tags.count("svg") == 2
    assert {"mean of the roll-outs: 0.3", "expected under the policy: 0.2", "policy: 0.01"} <= set(page.texts)
