"""The first command a user runs: every stage in one minute on 200 users, resumed after an interruption."""

import json
import shlex
from pathlib import Path

from llmrec.baselines.config import with_defaults as ranker_defaults
from llmrec.cli import main, option_blocks
from llmrec.configs import STAGES, QuickstartConfig
from llmrec.configs.file import load_config
from llmrec.runtime.manifest import content_hash, read_manifest, verify
from llmrec.stages import quickstart
from llmrec.tokenizers.config import with_defaults as tokenizer_defaults

STAGES_OF = {
    "catalog": "prepare",
    "views": "embed",
    "sid": "tokenize",
    "sasrec": "teach",
    "item_knn": "teach",
    "base": "extend",
    "checkpoint": "sft",
    "eval": "evaluate",
}
DEFAULTS = {"tokenize": tokenizer_defaults, "teach": ranker_defaults}
RECIPE = Path(__file__).parents[2] / "recipes" / "movietweetings-micro"


def run(capsys, *flags: str) -> dict:
    capsys.readouterr()
    assert main(["quickstart", "--json", *flags]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_200_users_take_less_than_a_minute_of_one_core_and_the_whole_comparison_is_printed(quickstart_200):
    assert float((quickstart_200 / "seconds").read_text()) < 60
    shown = (quickstart_200 / "quickstart.log").read_text(encoding="utf-8")
    rankers = ("popularity", "markov", "item_knn", "transition_graph", "sasrec")
    for expected in ("movietweetings", "micro", "ours", *rankers, "Seconds per stage"):
        assert expected in shown
    for name in STAGES_OF:
        verify(quickstart_200 / name)


def test_the_recipe_is_what_quickstart_runs(quickstart_200):
    differ = {"out", "catalog", "views", "sid", "model", "num_users", "teacher", "baselines"}  # paths and the sample
    for name, stage in STAGES_OF.items():
        path = RECIPE / f"{'teach-' + name.replace('_', '-') if stage == 'teach' else stage}.yaml"
        config = load_config(STAGES[stage], path, blocks=option_blocks(stage, ["--config", str(path)]))
        recipe = vars(DEFAULTS[stage](config) if stage in DEFAULTS else config)
        ran = read_manifest(quickstart_200 / name)["config"]
        assert {k: v for k, v in recipe.items() if k not in differ} == {k: v for k, v in ran.items() if k not in differ}
        for listed in ("teacher", "baselines"):
            assert [Path(each).name for each in recipe.get(listed, [])] == [
                Path(each).name for each in ran.get(listed, [])
            ]


def test_the_sentence_about_sasrec_is_read_off_the_intervals(quickstart_200):
    """In three metrics.json: ahead everywhere, ahead in one of four, and behind in one."""
    metrics = json.loads((quickstart_200 / "eval" / "metrics.json").read_text())
    entries = [each for column in metrics["differences"]["sasrec"].values() for each in column.values()]
    assert len(entries) == 4
    for entry in entries:
        entry.update(low=0.001, high=0.02)
    assert "ahead of SASRec in all 4" in quickstart.verdict(metrics)
    for entry in entries[1:]:
        entry.update(low=-0.001, high=0.02)
    assert "ahead of SASRec in 1 and behind it in 0 of 4" in quickstart.verdict(metrics)
    entries[3].update(low=-0.02, high=-0.001)
    assert "ahead of SASRec in 1 and behind it in 1 of 4" in quickstart.verdict(metrics)


def test_without_data_and_network_it_runs_on_the_simulator_and_says_so(monkeypatch, tmp_path, capsys):
    def unreachable(source):
        raise ValueError("movietweetings is not on this machine.")

    monkeypatch.setattr(quickstart, "locate", unreachable)
    monkeypatch.setattr(QuickstartConfig, "num_users", 60)
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--num-users", "60", "--epochs", "0.3"]) == 0
    shown = capsys.readouterr()
    assert "SIMULATED" in shown.err.splitlines()[1]  # first …
    *_, done, following = shown.out.splitlines()
    assert done.startswith("Done: The data is SIMULATED")  # … and last
    assert main(shlex.split(following.removeprefix("Next: llmrec "))) == 0
    assert capsys.readouterr().out.startswith("history: ")


def test_run_again_it_repeats_nothing_and_gives_the_same(tmp_path, capsys):
    flags = ("--dataset", "simulated", "--num-users", "60", "--epochs", "0.3", "--out", str(tmp_path / "q"))
    first = run(capsys, *flags)
    hashes = {name: content_hash(tmp_path / "q" / name) for name in STAGES_OF}
    (tmp_path / "q" / "eval" / "manifest.json").unlink()
    (tmp_path / "q" / "eval").rename(tmp_path / "q" / "dropped")
    second = run(capsys, *flags)
    del hashes["eval"]
    assert {name: content_hash(tmp_path / "q" / name) for name in hashes} == hashes
    assert second["metrics"]["examples"] == first["metrics"]["examples"]
    assert second["metrics"]["differences"] == first["metrics"]["differences"]
    assert second["comparison"] == first["comparison"] == quickstart.verdict(first["metrics"])
