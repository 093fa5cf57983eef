"""The report page: well-formed, with every system, safe to open, and in need of nothing outside itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrec.evaluation.metrics import Position
from llmrec.evaluation.protocol import COLUMNS, Outcome
from llmrec.evaluation.summary import sid_usage, summarise
from llmrec.reports.evaluation import render
from llmrec.reports.svg import HEIGHT, WIDTH, Line, log_ticks, nice_ticks, plot, short
from tests.evaluation.test_strata import random_rows, random_transitions

SYSTEMS = ("ours", "popularity", "<script>alert(1)</script>")
LOG = [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 1.5}, {"step": 20, "train_runtime": 3.0}]
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Collects tags and texts that are not blank; fails on a tag that is closed out of order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)


@pytest.fixture
def metrics(sid_table) -> dict:
    """What evaluate measures of three systems on random answers."""
    rng = np.random.default_rng(0)
    rows, training = random_rows(rng, 12), rng.integers(0, 5, size=12)
    outcomes = {}
    for system in SYSTEMS:
        for column in COLUMNS:
            start = rng.integers(-1, 4, size=30)
            items = np.stack([rng.permutation(12)[:4] for _ in range(30)])
            outcomes[system, column] = Outcome(Position(start, np.ones(30, int), start), items, np.zeros(30, int), 1.0)
    found = summarise(outcomes, rows, [1, 3], training, random_transitions(rng, 12))
    return {
        "split": "test",
        "num_beams": 12,
        "bootstrap_samples": 1000,
        "sid_usage": sid_usage(sid_table, np.arange(sid_table.num_items), outcomes),
    } | found


def test_the_page_is_well_formed_and_names_every_system(metrics):
    page = Balanced(render(metrics, LOG, "run/eval & more"))
    for system in SYSTEMS:
        assert page.texts.count(system) >= 2 * 2 + 2  # in both headline tables, both of what is shown, and the legends
    assert "Evaluation of run/eval & more" in page.texts
    assert "details" not in page.tags  # a copy of a checkpoint does not say how it was made
    assert page.tags.count("svg") == 10 + 2 + 1 + 1  # strata, popularity bias, SID usage, training


def test_the_page_needs_nothing_outside_itself(metrics):
    page = render(metrics, LOG, "eval")
    found = Balanced(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(found.tags)
    assert not {"src", "href", "xlink:href", "onload"} & {name for name, _ in found.attributes}
    assert not re.search(r"https?:|//\w|url\(|@import", page)


def test_without_a_training_log_nothing_is_drawn_of_it(metrics):
    with_log, without = (Balanced(render(metrics, log, "eval")) for log in (LOG, []))
    assert "Training" in with_log.texts and "Training" not in without.texts
    assert "loss: 1.5" in with_log.texts


def test_the_headline_holds_the_numbers_of_metrics_json(metrics):
    texts = Balanced(render(metrics, [], "eval")).texts
    for system in SYSTEMS:
        for column in COLUMNS:
            found = metrics["systems"][system][column]
            low, high = found["intervals"]["ndcg@3"]
            assert f"{found['ndcg@3']:.4f}" in texts and f"[{low:.4f}, {high:.4f}]" in texts


def test_strata_of_several_kinds_are_tables(metrics):
    texts = Balanced(render(metrics, [], "eval")).texts
    for stratum in metrics["strata"]:
        if stratum["family"] in ("transition", "beam"):
            assert stratum["name"] in texts and f"{stratum['num_examples'] / 30:.1%}" in texts
            for columns in stratum["systems"].values():
                for values in columns.values():
                    low, high = values["ndcg@3"]["low"], values["ndcg@3"]["high"]
                    assert f"{values['ndcg@3']['mean']:.4f}" in texts and f"[{low:.4f}, {high:.4f}]" in texts
    outside = [s for s in metrics["strata"] if s["name"] == "outside"]
    assert {s["column"] for s in outside} == set(COLUMNS), "both columns have some"
    assert all(s["systems"]["ours"][s["column"]]["recall@3"]["mean"] == 0 for s in outside)


def test_a_difference_is_bold_where_its_interval_excludes_0(metrics):
    for column in COLUMNS:
        ends = {"popularity": (-0.2, 0.3), "<script>alert(1)</script>": (-0.2, -0.1)}
        for baseline, (low, high) in ends.items():
            metrics["differences"][baseline][column]["ndcg@3"] = {"mean": low, "low": low, "high": high}
            metrics["differences"][baseline][column]["recall@3"] = {"mean": 0.0, "low": 0.0, "high": 0.0}
    page = render(metrics, [], "eval")
    assert page.count("<b>") == page.count("<b>-0.2000<small>[-0.2000, -0.1000]</small></b>") == len(COLUMNS)


def test_the_settings_of_the_checkpoint_are_folded_up(metrics):
    metrics["trained"] = {"stage": "sft", "config": {"seed": 7, "instruction": "<b>Recommend</b>"}, "inputs": {}}
    page = Balanced(render(metrics, [], "eval"))
    assert "llmrec sft" in page.texts and "seed: 7\ninstruction: <b>Recommend</b>" in page.texts
    assert "details" in page.tags


def test_sid_usage_by_hand(sid_table):
    """Items 0, 4 and 9 are shown, the first twice as often: the codes 0, 1 and 3 of level 0; 0, 0 and 1 of level 1."""
    nowhere, items = np.full(2, -1), np.array([[0, 4, -1], [9, 0, -1]])
    outcome = Outcome(Position(nowhere, np.ones(2, int), nowhere), items, np.zeros(2, int), 1.0)
    levels = sid_usage(sid_table, np.arange(sid_table.num_items), {("ours", column): outcome for column in COLUMNS})
    assert [(level["level"], level["codebook_size"]) for level in levels] == [(0, 4), (1, 4), (2, 4)]
    assert [level["catalog"]["used"] for level in levels] == [4, 4, 4]
    share = np.array([4, 3, 2, 3]) / 12  # of the twelve items, on the four codes of level 0
    assert levels[0]["catalog"]["effective"] == pytest.approx(2 ** -(share @ np.log2(share)))
    for column in COLUMNS:
        assert levels[0][column] == {"used": 3, "effective": pytest.approx(2**1.5)}
        assert levels[1][column] == {"used": 2, "effective": pytest.approx(2 ** (0.75 * np.log2(4 / 3) + 0.5))}


@settings(derandomize=True, max_examples=100, deadline=None)
@given(low=st.floats(0, 1e6), span=st.floats(0, 1e6))
def test_ticks_enclose_the_values_in_even_steps(low, span):
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-6 * abs(low) and ticks[-1] >= (low + span) * (1 - 1e-6)
    assert 3 <= len(ticks) <= 12
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(low=st.floats(1e-3, 1e6), factor=st.floats(1, 1e6))
@example(low=999999.9999999999, factor=1.0)  # its logarithm is rounded to 6
def test_logarithmic_ticks_enclose_the_values(low, factor):
    ticks = log_ticks(low, low * factor)
    assert ticks[0] <= low and ticks[-1] >= low * factor
    assert 2 <= len(ticks) <= 12 and ticks == sorted(ticks)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=11))
def test_every_mark_lies_in_the_picture(values):
    drawn = plot([Line("a", range(len(values)), values, "#000", values, values)], "x", [str(v) for v in values])
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', drawn)]
    assert len(places) == len(values)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert [y for _, y in sorted(places)] == pytest.approx([y for _, y in places])  # from left to right, as given


def test_a_plot_puts_values_where_they_belong():
    """Two points over numbers: from the left edge of the axes to the right one, from its top to its bottom."""
    drawn = plot([Line("loss", [10, 20], [4.0, 0.0], "#000")], "step")
    assert re.findall(r'points="([^"]+)"', drawn) == ["52.0,10.0 448.0,200.0"]
    assert "<title>loss: 4</title>" in drawn


def test_labelled_places_share_the_axis_evenly():
    drawn = plot([Line("a", [0, 1], [1.0, 1.0], "#000")], "x", ["one\nbelow", "two"])
    assert re.findall(r'cx="([\d.]+)"', drawn) == ["151.0", "349.0"]  # the middles of both halves
    assert ">one</text>" in drawn and ">below</text>" in drawn


def test_a_logarithmic_axis_has_equal_room_for_equal_factors():
    drawn = plot([Line("a", [10, 100, 1000], [1.0, 1.0, 1.0], "#000")], "items", log_x=True)
    assert re.findall(r'cx="([\d.]+)"', drawn) == ["52.0", "250.0", "448.0"]
    assert re.findall(r'middle">([\d,]+)<', drawn) == ["10", "20", "50", "100", "200", "500", "1,000"]


def test_the_labels_of_an_axis_have_the_same_decimals():
    drawn = plot([Line("a", [0, 1], [0.0, 0.1], "#000")], "", ["", ""])
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]


def test_large_numbers_are_shortened():
    assert [short(n) for n in (0.5, 950, 9999, 12_345, 999_999, 3_440_000)] == [
        "0.5", "950", "9,999", "12k", "1,000k", "3.4M",
    ]  # fmt: skip


def test_the_page_begins_with_the_verdict_and_shows_examples_as_text(metrics):
    evil = "<img src=x onerror=alert(1)>"
    metrics["examples"] = [
        {
            "user_id": "<b>ann</b>",
            "history": [["i1", "Saw"], ["i2", ""]],
            "target": ["i9", evil],
            "recommended": {column: [["i3", "Jaws"], ["i9", evil]] for column in COLUMNS},
        }
    ]
    page = render(metrics, [], "eval")
    shown = Balanced(page).texts
    assert "is ahead" in shown[shown.index("Evaluation of eval", 1) + 1]
    assert "img" not in Balanced(page).tags and shown.count(evil) == 1  # in bold, as what the user went on to
    assert f"Went on to: {evil}" in shown and "User <b>ann</b>" in shown
    assert [name for name in ("Saw", "i2", "Jaws") if name in shown] == ["Saw", "i2", "Jaws"]  # an id without a title
