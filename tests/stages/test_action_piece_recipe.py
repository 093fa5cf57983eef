"""The commands of recipes/beauty-action-piece, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llmrec.cli import main
from tests.support.recipes import commands_of, files_of

# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "tokenize": "--num-levels 2 --codebook-size 8 --pca-dim 16 --hash-size 16 --num-pieces 60",
    "extend": "--micro-layers 1 --micro-hidden 32 --sid-init titles",
    "sft": "--max-steps 6 --batch-size 16 --micro-batch-size 16 --eval-steps 3 --eval-examples 20 --warmup-steps 0",
    "evaluate": "--k 5 10",
}


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:80x40", "--out", "runs/beauty/catalog"]) == 0
    views = ["--views", "text", "collaborative", "--text-encoder", "tfidf", "--collaborative-dim", "16"]
    assert main(["embed", "--catalog", "runs/beauty/catalog", *views, "--out", "runs/beauty/views"]) == 0
    commands = commands_of("beauty-action-piece")
    for words in commands:
        assert main([*words, *shlex.split(SMALLER[words[0]])]) == 0, capsys.readouterr().err
    assert {Path(words[2]).name for words in commands} == files_of("beauty-action-piece")
    for out in ("test", "test-fixed"):
        assert "ours" in json.loads(Path(f"runs/beauty-action-piece/{out}/metrics.json").read_text())["systems"]
