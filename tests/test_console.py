"""What a person reads is what was said: paths and titles are no markup, and a log holds no torn or blank lines."""

from __future__ import annotations

from llmrec.console import progress, say, table

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
