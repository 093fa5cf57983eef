"""One command from own files to recommendations: what it chooses, asks and prints, and that its last line runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec.cli import main
from llmrec.configs import QuickstartConfig, RunConfig
from llmrec.data.split import suited_k_core
from llmrec.runtime.manifest import content_hash, read_manifest
from llmrec.stages import plan, questions, quickstart, run
from tests.diagnostics.test_diagnostics import build_catalog
from tests.support.extended import same_weights

QUICK = ("--epochs", "0.3")


def write_log(folder: Path, item_id=str, times: bool = True, titles: bool = True, names=("user_id", "item_id")) -> list:
    """Forty users of twenty items that are sold in the order of their numbers; flags of `llmrec run`."""
    drawn = random.Random(0)
    with (folder / "log.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow([*names, *(["timestamp"] if times else [])])
        for user in range(40):
            first = drawn.randrange(20)
            for place in range(6):
                row = [f"user-{user}", item_id((first + place) % 20)]
                log.writerow(row + ([1_700_000_000 + 86_400 * place] if times else []))
    flags = ["run", "--interactions", str(folder / "log.csv"), "--out", str(folder / "out"), *QUICK]
    if titles:
        with (folder / "items.csv").open("w", newline="") as file:
            items = csv.writer(file)
            items.writerow(["item_id", "title"])
            items.writerows([item_id(number), f"[red]film \x1b[31m{number}[/red]"] for number in range(20))
        flags += ["--items", str(folder / "items.csv")]
    return flags


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("run")
    flags = write_log(folder, item_id=lambda number: f"item-{number}")
    assert main(flags) == 0
    return folder / "out", flags


def last_line(shown: str) -> list[str]:
    """The command of the last line."""
    label, _, command = shown.rstrip("\n").rpartition("\n")[2].partition(": ")
    assert label == "Next"
    return shlex.split(command)[1:]


def test_its_last_line_runs_as_printed_and_answers_with_titles(whole, capsys):
    """Run again it repeats nothing, and prints the same."""
    out, flags = whole
    before = {path.name: content_hash(path) for path in out.iterdir()}
    assert main(flags) == 0
    shown = capsys.readouterr()
    assert {path.name: content_hash(path) for path in out.iterdir()} == before
    lines = shown.out.splitlines()
    assert "ahead of" in lines[0] or "are level" in lines[0]
    assert "recommended" in shown.out and "User user-" in shown.out
    assert "[red]film" in shown.out and "\x1b" not in shown.out + shown.err, "titles are text"
    assert main(last_line(shown.out)) == 0
    answer = capsys.readouterr().out.splitlines()
    assert answer[0].startswith("history: [red]film") and len(answer) == 11 and "[red]film" in answer[1]


def test_a_catalogue_with_a_chosen_k_core_can_be_appended_to(whole, tmp_path, capsys):
    """The k that the data chose stays; new users with fewer interactions are left out."""
    log = "\n".join(f"{user},item-{n},1800000000" for user, count in (("new", 5), ("few", 4)) for n in range(count))
    (tmp_path / "more.csv").write_text(f"user_id,item_id,timestamp\n{log}\n")
    given = ["--append-to", str(whole[0] / "catalog"), "--interactions", str(tmp_path / "more.csv")]
    assert main(["prepare", *given, "--out", str(tmp_path / "more"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["users"], result["k_core"], result["items"]) == (41, 5, 20)


def test_what_it_chose_is_said_with_reasons_and_kept_in_the_result(whole, capsys):
    out, flags = whole
    assert main([*flags, "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert all(choice in shown.err for choice in result["choices"])
    assert [choice.partition(":")[0] for choice in result["choices"]] == [
        "prepare", "embed", "tokenize", "extend", "teach, sft"
    ]  # fmt: skip
    assert "k-core 5, the largest up to 5 that keeps half" in result["choices"][0]
    assert "4 codes per level, because there are 20 items" in result["choices"][2]
    assert read_manifest(out / "sid")["config"]["options"]["codebook_size"] == 4
    assert result["seconds"].keys() == set(run.DIRECTORIES) and result["metrics"]["num_users"] == 40


def test_an_interrupted_run_continues(whole, tmp_path, monkeypatch, capsys):
    flags = write_log(tmp_path, item_id=lambda number: f"item-{number}")
    with monkeypatch.context() as patch:
        patch.setattr(run.sft, "main", lambda config: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(flags) == 130
    assert "run the same command again" in capsys.readouterr().err
    made = {name: content_hash(tmp_path / "out" / name) for name in ("catalog", "views", "sid", "base")}
    assert main(flags) == 0
    assert {name: content_hash(tmp_path / "out" / name) for name in made} == made
    assert same_weights(tmp_path / "out" / "checkpoint", whole[0] / "checkpoint")


@pytest.mark.parametrize(
    "item_id",
    [
        lambda number: f"-{number}",  # a flag
        lambda number: f"$(touch hacked) '{number}'\u202e",  # a shell would run it
    ],
)
def test_ids_that_a_shell_would_read_otherwise_do_not_break_the_last_line(item_id, tmp_path, monkeypatch, capsys):
    """Here without items: ids alone, from a log of one file."""
    monkeypatch.chdir(tmp_path)
    assert main(write_log(tmp_path, item_id=item_id, titles=False)) == 0
    shown = capsys.readouterr()
    assert "collaborative vectors alone, because no item has a title or another text" in shown.err
    assert "\u202e" not in shown.out
    assert main(last_line(shown.out)) == 0 and not (tmp_path / "hacked").exists()


class Terminal(io.StringIO):
    """Keyboard and screen of a person."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def asked(monkeypatch):
    """Function that answers questions with lines, and returns the options and what was on the screen."""

    def ask(config: RunConfig, *lines: str) -> tuple[RunConfig, str]:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdin", Terminal("".join(line + "\n" for line in lines)))
        monkeypatch.setattr(sys, "stderr", screen)
        return questions.answered(config), screen.getvalue()

    return ask


def config(flags: list) -> RunConfig:
    return RunConfig(interactions=flags[2], out=flags[4])


def test_nothing_is_asked_where_the_file_tells(tmp_path, asked):
    plain = config(write_log(tmp_path))
    assert asked(plain) == (plain, "")
    common = config(write_log(tmp_path, names=("customer id", "SKU")))
    assert asked(common) == (common, "")


def test_two_questions_at_most_and_the_options_that_answer_them(tmp_path, asked):
    unclear = config(write_log(tmp_path, names=("who", "what"), times=False))
    found, screen = asked(unclear, "who, when", "who what", "order")
    assert found == dataclasses.replace(unclear, user_column="who", item_column="what", order_only=True)
    assert "there is no 'when'; the columns are 'who', 'what'" in screen
    assert "So it is --user-column who --item-column what" in screen and "So it is --order-only" in screen
    given = dataclasses.replace(unclear, user_column="who", item_column="what", order_only=True)
    assert asked(given) == (given, "")


def test_a_column_of_times_may_have_any_name(tmp_path, asked):
    """Blanks too; an answer that is no column is asked again, and an end of the input is an end."""
    (tmp_path / "log.csv").write_text("user_id,item_id,when it was\nu,i,1\n")
    unclear = RunConfig(interactions=str(tmp_path / "log.csv"))
    found, _ = asked(unclear, "yes", "when it was")
    assert found.timestamp_column == "when it was"
    for lines in ((), ("yes",), ("a", "b", "c", "when it was")):
        with pytest.raises(ValueError, match="are not known; name them with --user-column"):
            asked(unclear, *lines)


def test_a_pipe_is_not_asked_but_told_the_option(tmp_path, capsys):
    assert main(write_log(tmp_path, times=False)) == 2
    said = capsys.readouterr().err
    assert "--order-only" in said and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_options_of_prepare_are_refused_in_the_same_words(tmp_path, capsys):
    assert main(["run", "--out", str(tmp_path / "out")]) == 2
    assert "give either --dataset (a known name) or --interactions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("targets", "users", "on_gpu", "given", "epochs", "sasrec_epochs"),
    [
        (10_000, 1_000, False, None, 12.0, 64),
        (50_000, 1_000, False, None, 4.0, 14),
        (50_000, 4_000, False, None, 12.0, 56),
        (10**7, 10**6, False, None, 2.0, 5),
        (10**7, 10**6, True, None, 12.0, 64),
        (10**7, 10**6, False, 7.0, 7.0, 5),
    ],
)
def test_a_large_log_gets_fewer_passes_on_a_cpu(monkeypatch, targets, users, on_gpu, given, epochs, sasrec_epochs):
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: on_gpu)
    catalog = build_catalog(20, [[0, 1, 2]], text=["film"] * 20)
    catalog.__dict__.update(training_counts=np.array([targets]), train=range(users))
    chosen = plan.make_plan(RunConfig(interactions="log.csv", epochs=given), catalog)
    assert (chosen.epochs, chosen.sasrec_epochs) == (epochs, sasrec_epochs)
    assert ("--epochs sets more" in chosen.reasons[-1]) == (not on_gpu and targets > 10_000)


def test_quickstart_runs_the_settings_of_its_recipe_whatever_the_size(monkeypatch, tmp_path):
    """The sequence of stages is that of `run`."""
    carried = []
    monkeypatch.setattr(run, "run_stages", lambda config, plan, out: carried.append(plan))
    monkeypatch.setattr(run, "json", None)  # there is no metrics.json to read
    monkeypatch.setattr(plan, "PASSED", 1)
    with pytest.raises(AttributeError):
        quickstart.main(QuickstartConfig(out=str(tmp_path / "q"), dataset="simulated:60x30", model="micro"))
    assert (carried[0].epochs, carried[0].sasrec_epochs) == (12.0, 45)


@pytest.mark.parametrize(
    ("rows", "k"),
    [
        ([(u, i) for u in range(5) for i in range(5)], 5),
        ([(u, i) for u in range(4) for i in range(6)], 4),  # an item has four users
        ([(u, i) for u in range(3) for i in range(3)] + [(u, 100 + u) for u in range(3, 6)], 3),
        ([(u, 10 * u + i) for u in range(6) for i in range(3)], 0),  # every item has one user
        ([(u, 0) for u in range(9)], 0),  # nobody can be tested
    ],
)
def test_the_k_core_keeps_half_of_the_users_that_can_be_tested(rows, k):
    users, items = (np.array(column) for column in zip(*rows, strict=True))
    assert suited_k_core(users, items) == k
