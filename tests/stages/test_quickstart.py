"""The first command a user runs: every stage in one minute on 200 users, resumed after an interruption."""

import json
from pathlib import Path

import pytest

from llmrec.cli import main
from llmrec.configs import STAGES, QuickstartConfig
from llmrec.configs.file import load_config
from llmrec.runtime.manifest import content_hash, read_manifest, verify
from llmrec.stages import quickstart
from llmrec.tokenizers.config import option_blocks, with_defaults

DIRECTORIES = ("catalog", "views", "sid", "base", "checkpoint", "eval")
RECIPE = Path(__file__).parents[2] / "recipes" / "movietweetings-micro"


def run(capsys, *flags: str) -> dict:
    capsys.readouterr()
    assert main(["quickstart", "--json", *flags]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_runs_on_200_users_within_a_minute_and_prints_the_whole_comparison(quickstart_200):
    assert float((quickstart_200 / "seconds").read_text()) < 60
    shown = (quickstart_200 / "quickstart.log").read_text(encoding="utf-8")
    for expected in ("movietweetings", "micro", "ours", "popularity", "markov", "item_knn", "Seconds per stage"):
        assert expected in shown
    for name in DIRECTORIES:
        verify(quickstart_200 / name)


def test_the_recipe_is_what_quickstart_runs(quickstart_200):
    differ = {"out", "catalog", "views", "sid", "model", "num_users"}  # paths and the sample of this run
    stages = dict(zip(DIRECTORIES, ("prepare", "embed", "tokenize", "extend", "sft", "evaluate"), strict=True))
    for name, stage in stages.items():
        config = load_config(STAGES[stage], RECIPE / f"{stage}.yaml", blocks=option_blocks() if name == "sid" else {})
        recipe = vars(with_defaults(config) if name == "sid" else config)
        ran = read_manifest(quickstart_200 / name)["config"]
        assert {k: v for k, v in recipe.items() if k not in differ} == {k: v for k, v in ran.items() if k not in differ}


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
