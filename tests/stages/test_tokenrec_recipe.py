"""The commands of recipes/beauty-tokenrec, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llmrec.cli import main
from tests.support.recipes import commands_of, files_of

# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "embed": "--collaborative-dim 16",
    "tokenize": "--codebook-size 8 --encoder-layers 16 --latent-dim 8 --max-epochs 5",
    "extend": "--micro-layers 1 --micro-hidden 32",
    "sft": "--max-steps 6 --batch-size 16 --micro-batch-size 16 --eval-steps 3 --eval-examples 20 --warmup-steps 0",
    "evaluate": "--k 5 10",
}


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:80x40", "--out", "runs/beauty/catalog"]) == 0
    commands = commands_of("beauty-tokenrec")
    for words in commands:
        assert main([*words, *shlex.split(SMALLER[words[0]])]) == 0, capsys.readouterr().err
    assert {Path(words[2]).name for words in commands} == files_of("beauty-tokenrec")
    for out in ("test", "test-cosine"):
        assert "ours" in json.loads(Path(f"runs/beauty-tokenrec/{out}/metrics.json").read_text())["systems"]
