"""The commands of recipes/beauty-titles, in their order and with its YAML files, only smaller and with a micro LLM."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llmrec.cli import main
from tests.support.recipes import commands_of, files_of

# Data, model, sizes and steps; every other option is the recipe's.
SMALLER = {
    "tokenize": "--llm micro",
    "extend": "--model micro --micro-layers 1 --micro-hidden 32",
    "sft": "--max-steps 4 --batch-size 16 --micro-batch-size 16 --eval-steps 2 --eval-examples 10 --warmup-steps 0 "
    "--compile false --max-history 5",
    "evaluate": "--k 5 10 --max-examples 20 --baselines popularity",
}


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:60x30", "--out", "runs/beauty/catalog"]) == 0
    run = set()
    for words in commands_of("beauty-titles"):
        assert main([*words, *shlex.split(SMALLER[words[0]])]) == 0, capsys.readouterr().err
        run.add(Path(words[words.index("--config") + 1]).name)
    assert run == files_of("beauty-titles")
    for out, rank in (("test", "sid"), ("test-means", "sid"), ("test-ground", "ground"), ("test-keywords", "sid")):
        metrics = json.loads(Path(f"runs/beauty-titles/{out}/metrics.json").read_text())
        assert metrics["rank"] == rank
        assert metrics["systems"]["ours"]["plain"]["invalid_rate"] == 0
