"""The grid of pipelines: shared stages run once, a failure leaves the others alone, results are taken up again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "experiments"


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import grid

    yield grid
    sys.modules.pop("grid")


@pytest.fixture
def arguments(grid, tmp_path):
    def of(*more: str):
        words = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results.jsonl"), "--parallel", "2"]
        return grid.parser("").parse_args([*words, *more])

    return of


def pipelines(grid, seeds=(0,)) -> list:
    """Two that share their first stage, and one whose second stage fails."""
    first = ("tokenize", {"method": "random"})
    return [
        grid.Run(name, (first, ("extend", {"model": model})), seed)
        for seed in seeds
        for name, model in (("small", "micro"), ("large", "wide"), ("broken", "none"))
    ]


def pretend(grid, monkeypatch) -> list[list[str]]:
    """Stages that write a manifest and nothing else; what they were called with."""
    called: list[list[str]] = []

    def process(self, label, words):
        called.append(words)
        if "none" in words:
            raise grid.Failed("extend: 2: no such model")
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True)
        (out / "manifest.json").write_text("{}")

    monkeypatch.setattr(grid.Grid, "process", process)
    return called


def test_stages_in_common_run_once_and_a_failure_leaves_the_others_alone(grid, arguments, monkeypatch, tmp_path):
    called = pretend(grid, monkeypatch)
    made = grid.Grid(arguments(), lambda run, directories: {"seen": [path.name for path in directories]})
    made.run_all(pipelines(grid))
    assert sorted(words[0] for words in called) == ["extend", "extend", "extend", "tokenize"]
    extended = next(words for words in called if "micro" in words)
    assert extended[extended.index("--sid") + 1] == str(made.directory(pipelines(grid)[0], 1))
    results = {r["name"]: r for r in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert results["small"]["seen"][0] == results["large"]["seen"][0]
    assert results["broken"]["error"] == "extend: 2: no such model"


def test_an_earlier_calls_results_are_not_run_again_but_failures_are(grid, arguments, monkeypatch, tmp_path):
    called = pretend(grid, monkeypatch)
    grid.Grid(arguments(), lambda run, directories: {}).run_all(pipelines(grid))
    done = tmp_path / "done.jsonl"
    (tmp_path / "results.jsonl").rename(done)
    called.clear()
    again = grid.Grid(arguments("--resume", str(done), "--work", str(tmp_path / "fresh")), lambda run, directories: {})
    again.run_all(pipelines(grid))
    assert [words[0] for words in called] == ["tokenize", "extend"] and "none" in called[1]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


def test_nothing_is_started_beyond_the_budget(grid, arguments, monkeypatch, capsys):
    called = pretend(grid, monkeypatch)
    grid.Grid(arguments("--budget-s", "-1"), lambda run, directories: {}).run_all(pipelines(grid))
    assert not called and "not started, over --budget-s: small seed 0" in capsys.readouterr().out


def test_seeds_and_options_tell_runs_apart_and_what_changes_no_result_does_not(grid):
    def key(options, seed=0):
        return grid.Run("a", (("sft", options),), seed).key

    assert key({"epochs": 1}) != key({"epochs": 2}) != key({"epochs": 2}, seed=1)
    assert key({"epochs": 1}) == key({"epochs": 1, "compile": True, "device": "cuda"})
    assert grid.flags({"views": ["text", "image"], "probe": True, "seed": None, "max_history": 20}) == [
        "--views", "text", "image", "--probe", "true", "--max-history", "20",
    ]  # fmt: skip


def test_the_tokenizers_of_the_table_are_those_there_are(grid):
    from beauty_tokenizers import METHODS

    from llmrec.configs import TokenizeConfig
    from llmrec.tokenizers import TOKENIZERS

    assert {options["method"] for options in METHODS.values()} == set(TOKENIZERS)
    for options in METHODS.values():
        TokenizeConfig.completed(options)(out="o", catalog="c", views="v", **options)


def test_the_claim_of_the_probe_averages_seeds_and_draws_tokenizers(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import probe_claim

    def run(name: str, recall: float, entropy: float, **more) -> str:
        probe = {"item_cross_entropy": entropy, "recall_at_50": 1 - recall, "ndcg_at_10": recall, "gain": [recall]}
        found = {"name": name, "test": {"plain": {"recall@10": recall}}, "probe": probe}
        return json.dumps(found | {"collision_rate": 0.1 * recall, "perplexity_share": [recall], **more})

    lines = [run("a", 0.1, 9.0), run("b", 0.2, 9.5), run("b", 0.4, 7.5), run("c", 0.5, 8.6), run("d", 0.6, 7.0)]
    (tmp_path / "runs.jsonl").write_text("\n".join([*lines, run("e", 0.9, 9.9, error="killed"), run("f", 0, 1)]))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "runs.jsonl"), "--without", "f", "--samples", "50"])
    probe_claim.main()
    first, *measured = capsys.readouterr().out.splitlines()
    assert first == "4 tokenizers, 5 runs"
    assert measured[0].split()[:3] == ["probe:", "-item_cross_entropy", "+0.80"]  # b, by its mean, and c change places
    assert measured[1].split()[2:] == ["-1.00", "[-1.00,", "-1.00]"]
