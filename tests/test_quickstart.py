"""The first command a user runs: every stage in one minute on 200 users, resumed after an interruption."""

import json
import subprocess
import sys
import time

import pytest

from llmrec.artifact import content_hash, verify
from llmrec.cli import main
from llmrec.configs import QuickstartConfig
from llmrec.stages import quickstart

DIRECTORIES = ("catalog", "views", "sid", "base", "checkpoint", "eval")


def run(capsys, *flags: str) -> dict:
    capsys.readouterr()
    assert main(["quickstart", "--json", *flags]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_runs_on_200_users_within_a_minute_and_prints_the_whole_comparison(data_dir, tmp_path):
    out = tmp_path / "quickstart"
    started = time.monotonic()
    command = [sys.executable, "-m", "llmrec.cli", "quickstart", "--out", str(out), "--num-users", "200"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    assert seconds < 60
    shown = result.stderr
    for expected in ("movietweetings", "micro", "ours", "popularity", "markov", "item_knn", "Seconds per stage"):
        assert expected in shown
    for name in DIRECTORIES:
        verify(out / name)


def test_without_data_and_network_it_runs_on_the_simulator_and_says_so(monkeypatch, tmp_path, capsys):
    def unreachable(source):
        raise ValueError("movietweetings is not on this machine.")

    monkeypatch.setattr(quickstart, "locate", unreachable)
    monkeypatch.setattr(QuickstartConfig, "num_users", 60)
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--num-users", "60", "--epochs", "0.3"]) == 0
    lines = capsys.readouterr().err.replace("\n", " ")
    assert lines.index("SIMULATED") < lines.index("Catalogue")  # first …
    assert lines.rindex("SIMULATED") > lines.rindex("latest history")  # … and last


def test_run_again_it_repeats_nothing_and_gives_the_same(tmp_path, capsys):
    flags = ("--dataset", "simulated", "--num-users", "60", "--epochs", "0.3", "--out", str(tmp_path / "q"))
    first = run(capsys, *flags)
    hashes = {name: content_hash(tmp_path / "q" / name) for name in DIRECTORIES}
    (tmp_path / "q" / "eval" / "manifest.json").unlink()
    (tmp_path / "q" / "eval").rename(tmp_path / "q" / "dropped")
    second = run(capsys, *flags)
    assert {name: content_hash(tmp_path / "q" / name) for name in DIRECTORIES[:-1]} == {
        name: hashes[name] for name in DIRECTORIES[:-1]
    }
    assert second["examples"] == first["examples"]
    assert second["metrics"]["differences"] == first["metrics"]["differences"]


@pytest.mark.parametrize(("items", "size"), [(2414, 64), (1050, 64), (500, 16), (30, 4), (10**6, 64)])
def test_codebook_size_leaves_about_sixteen_items_per_code_or_more(items, size):
    assert quickstart.codebook_size(items) == size
