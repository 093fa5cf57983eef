"""What a person reads is what was said: paths and titles are no markup, and a log holds no torn or blank lines."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from llmrec.runtime import console
from llmrec.runtime.console import progress, say, table

ODD = "runs/[/b][dim]:smile:"


def test_text_is_shown_as_it_is(capsys):
    say(ODD)
    table("title", ("name",), [[ODD]])
    shown = capsys.readouterr().err
    assert shown.count(ODD) == 2


def test_a_line_of_a_log_stays_one_line(capsys):
    say("word " * 60)
    assert capsys.readouterr().err == "word " * 60 + "\n"


def test_a_log_has_no_trace_of_a_progress_bar(capsys):
    assert list(progress(range(3), "counting", total=3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_counts_what_items_are_worth(monkeypatch):
    """Two batches of 40 and 20 rows are 60 rows, and the speed is in rows."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "console", lambda: Console(file=screen, force_terminal=True, width=120))
    for _ in progress([40, 20], "ours", total=60, unit="rows", size=lambda rows: rows):
        time.sleep(0.01)  # the speed is 20 rows over this
    last = re.findall(r"ours .*? (\d+/\d+) rows ([\d,.]+)/s", re.sub(r"\x1b\[[\d;?]*\w", "", screen.getvalue()))[-1]
    assert last[0] == "60/60" and 0 < float(last[1].replace(",", "")) < 2001
