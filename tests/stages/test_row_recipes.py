"""The commands of the recipes of CLLM4Rec and CCFRec, in their order and with their YAML files, only smaller."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from llmrec.cli import main
from tests.support.recipes import commands_of, files_of

# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "beauty-cllm4rec": {
        "tokenize": "",
        "extend": "--model micro --micro-layers 1 --micro-hidden 32 --micro-words 200",
        "sft": "--epochs 2 --masked-epochs 1 --batch-size 40 --micro-batch-size 40 --eval-steps 2 --eval-examples 20 "
        "--warmup-steps 0",
        "evaluate": "",
    },
    "beauty-ccfrec": {
        "tokenize": "--num-levels 4 --codebook-size 8 --pca-dim 16",
        "teach": "--hidden 8 --layers 1 --fusion-layers 1 --max-epochs 2",
        "evaluate": "",
    },
}


@pytest.mark.parametrize(("recipe", "row"), [("beauty-cllm4rec", "ours"), ("beauty-ccfrec", "ccfrec")])
def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys, recipe, row):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:80x40", "--out", "runs/beauty/catalog"]) == 0
    views = ["--views", "text", "--text-encoder", "tfidf", "--out", "runs/beauty/views"]
    assert main(["embed", "--catalog", "runs/beauty/catalog", *views]) == 0
    run = set()
    for words in commands_of(recipe):
        assert main([*words, *shlex.split(SMALLER[recipe][words[0]])]) == 0, capsys.readouterr().err
        run.add(Path(words[words.index("--config") + 1]).name)
    assert run == files_of(recipe)
    assert row in json.loads(Path(f"runs/{recipe}/test/metrics.json").read_text())["systems"]
