"""What a person reads is what was said: results apart from messages, text without effects, no torn or blank lines."""

from __future__ import annotations

import io
import re
import sys
import time
import unicodedata

import pytest
from rich.progress import Progress

from llmrec.runtime.console import bar, progress, say, table, tell
from llmrec.runtime.terminal import inert, libraries_kept_quiet

ODD = "runs/[/b][dim]:smile:"


def test_results_are_on_stdout_and_messages_on_stderr(capsys):
    say("a message")
    tell("a result")
    table("title", ("name",), [["cell"]])
    shown = capsys.readouterr()
    assert shown.err == "a message\n"
    assert shown.out.startswith("a result\n\ntitle") and shown.out.rstrip().endswith("cell")


def test_text_is_shown_as_it_is(capsys):
    say(ODD)
    tell(ODD)
    table(ODD, (ODD,), [[ODD]])
    shown = capsys.readouterr()
    assert (shown.err.count(ODD), shown.out.count(ODD)) == (1, 4)


@pytest.mark.parametrize(
    "attack",
    [
        "Saw\x1b[2J\x1b[H",  # clears the screen
        "Saw\x1b]8;;http://evil\x07link\x1b]8;;\x07",  # a link that reads otherwise
        "Saw\x9b31m",  # the same as an escape, in one character of C1
        "Saw\n   1  0.0  evil",  # forges a row
        "Saw\r   1  0.0  evil",
        "Saw\u2028evil",
        "Saw\u202egnp.exe",  # turns the direction of writing
        "Saw\u2066evil",
        "Saw\x00\x07\x08\x7f",
        "Saw\ud800",
    ],
)
def test_no_character_of_a_title_acts_on_the_terminal(attack, capsys):
    shown = inert(attack)
    assert shown.startswith("Saw") and shown.isprintable()
    say(attack)
    tell(attack)
    table(attack, (attack,), [[attack]])
    printed = capsys.readouterr()
    assert not [c for c in printed.out + printed.err if unicodedata.category(c) in ("Cc", "Cs", "Zl") and c != "\n"]
    assert "\u202e" not in printed.out + printed.err
    assert len(printed.err.splitlines()) == len(printed.out.splitlines()) - 5 == 1  # a table of one row has 5 lines


@pytest.mark.parametrize(
    "title", ["Amélie", "七人の侍\u3000完全版", "👩\u200d🚀", "می\u200cخواهم", "soft\u00adhyphen", "no\u00a0break"]
)
def test_letters_of_all_languages_stay(title):
    assert inert(title) == title


def test_a_line_of_a_log_stays_one_line(capsys):
    say("word " * 60)
    assert capsys.readouterr().err == "word " * 60 + "\n"


@pytest.mark.parametrize("columns", ["1", "20", "80", "400", "wide", "0"])
def test_a_table_keeps_its_content_at_every_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    table("title", ("name", "value"), [["abc", 0.5]])
    shown = capsys.readouterr().out
    assert columns in ("0", "1") or ("abc" in shown and "0.5000" in shown.replace("\n", ""))


def test_no_color_and_a_pipe_give_plain_text(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    tell("result")
    assert "\x1b[3" not in capsys.readouterr().out


@pytest.mark.parametrize("force", ["", "1"])
def test_a_log_has_no_trace_of_a_progress_bar(force, capsys, monkeypatch):
    """CI sets FORCE_COLOR, by which rich would take a log for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", force)
    assert list(progress(range(3), "counting", total=3)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert shown.err == shown.out == ""


class Screen(io.StringIO):
    """A terminal of 120 columns."""

    def isatty(self) -> bool:
        return True


def test_a_bar_counts_what_items_are_worth_and_vanishes(monkeypatch):
    """Two batches of 40 and 20 rows are 60 rows, and the speed is in rows."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    for _ in progress([40, 20], "ours [red]", total=60, unit="rows", size=lambda rows: rows):
        time.sleep(0.01)  # the speed is 20 rows over this
    shown = screen.getvalue()
    last = re.findall(r"ours \[red\] .*? (\d+/\d+) rows ([\d,.]+)/s", re.sub(r"\x1b\[[\d;?]*\w", "", shown))[-1]
    assert last[0] == "60/60" and 0 < float(last[1].replace(",", "")) < 2001
    assert shown.endswith(("\x1b[2K", "\x1b[2K\x1b[?25h", "\x1b[1A\x1b[2K")), "the line of the bar is not erased"


def test_what_a_library_prints_and_warns_stays_off_stdout(capsys, recwarn):
    import warnings

    with libraries_kept_quiet():
        print("{'loss': 1.0}")
        warnings.warn("nothing that a user can act on", UserWarning, stacklevel=1)
    shown = capsys.readouterr()
    assert shown.out == "" and "loss" in shown.err and not recwarn


def test_a_bar_within_a_bar_is_a_line_of_the_same_display(monkeypatch):
    """Validation in the middle of training; two displays would overwrite one another."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    with bar("sft", 4, "steps", done=2) as update:
        for _ in progress([1, 2], "valid examples"):
            time.sleep(0.15)  # the display is drawn ten times a second
        update(advance=1, description="sft, loss 1.5000")
        time.sleep(0.15)
        say("a message")
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", screen.getvalue())
    assert re.search(r"sft +[━╸╺]+ 2/4 steps.*\r?\n?valid examples .* 1/2", shown)
    assert re.search(r"sft, loss 1.5000 [━╸╺]+ 3/4 steps", shown) and "a message" in shown
    assert screen.getvalue().count("\x1b[?25h") == screen.getvalue().count("\x1b[?25l") == 1, "the cursor is back"


def test_an_interrupt_while_a_bar_is_first_drawn_gives_the_cursor_back(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    started = Progress.start

    def interrupted(self):
        started(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "start", interrupted)
        list(progress(range(3), "counting"))
    assert screen.getvalue().count("\x1b[?25h") == screen.getvalue().count("\x1b[?25l") == 1


def test_a_failure_gives_the_cursor_back(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(KeyboardInterrupt), bar("sft", 4):
        raise KeyboardInterrupt
    assert screen.getvalue().count("\x1b[?25h") == screen.getvalue().count("\x1b[?25l") == 1
    for _ in progress(range(2), "again"):
        pass
    assert "again" in screen.getvalue(), "a new display"
