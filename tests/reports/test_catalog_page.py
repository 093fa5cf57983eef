"""The page of prepare: well-formed, with every verdict, and inert whatever the data hold."""

from __future__ import annotations

import re

import polars as pl
import pytest

from llmrec.configs import PrepareConfig
from llmrec.data.report.verdicts import verdicts
from llmrec.reports.catalog import render
from llmrec.stages import prepare
from tests.reports.test_evaluation_page import Balanced

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("data") / "catalog"
    return prepare.main(PrepareConfig(dataset="simulated:80x30", out=str(out)))["report"]


def test_the_page_has_all_its_parts(report):
    page = Balanced(render(report, "run/catalog & more"))
    assert "The data of run/catalog & more" in page.texts
    assert page.tags.count("svg") == 3 and page.tags.count("table") == 4 and "script" not in page.tags
    said = " ".join(page.texts)
    for verdict in report["verdicts"]:
        assert verdict["says"] in said and verdict["remedy"] in said
    assert {"Look at this", "Good to know", "Fine"} & set(page.texts)


def test_the_opening_counts_the_warnings(report):
    for count, words in ((0, "No warnings: nothing"), (1, "One point may"), (3, "3 points may")):
        warnings = [{"kind": "warning", "says": f"w{n}", "remedy": ""} for n in range(count)]
        assert words in render(report | {"verdicts": warnings}, "x")


def test_hostile_ids_fields_and_notes_are_text(report):
    look_alikes = {"groups": 1, "ids": 2, "kinds": {"blanks": {"groups": 1, "examples": [[HOSTILE, HOSTILE + " "]]}}}
    hostile = report | {"notes": [HOSTILE]}
    hostile["ids"] = report["ids"] | {"items": {"look_alikes": look_alikes, "nothing": {}}}
    column = {"name": HOSTILE, "missing": 0, "different": 1}
    hostile["fields"] = report["fields"] | {"columns": [*report["fields"]["columns"], column]}
    hostile["verdicts"] = verdicts(hostile)
    text = render(hostile, HOSTILE)
    assert HOSTILE not in text and text.count("&lt;script&gt;") >= 6
    Balanced(text)


def test_a_log_without_times_has_no_plot_of_time(report):
    text = render(report | {"times": None, "ties": None}, "x")
    assert "<h2>Time</h2>" not in text and Balanced(text).tags.count("svg") == 2


def test_every_number_of_the_steps_is_on_the_page(report):
    text = render(report, "x")
    for step in report["steps"]:
        assert f"{step['interactions']:,} (" in text
    assert re.search(r"recall@10</th>", text)


def test_one_day_of_log_has_no_plot_of_time(tmp_path):
    rows = [(f"u{u}", f"i{(u + step) % 6}", 1_600_000_000 + step) for u in range(12) for step in range(6)]
    log = tmp_path / "log.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(log)
    result = prepare.main(PrepareConfig(interactions=str(log), out=str(tmp_path / "catalog")))
    assert "over_time" not in result["report"]["times"]
    assert "<h2>Time</h2>" not in (tmp_path / "catalog" / "report.html").read_text(encoding="utf-8")
