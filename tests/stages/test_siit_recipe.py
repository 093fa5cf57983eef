"""The commands of recipes/beauty-siit, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llmrec.cli import main
from llmrec.model.checkpoint import SidConfig
from tests.support.recipes import commands_of, files_of

# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "sft": "--max-steps 4 --batch-size 16 --micro-batch-size 16 --eval-steps 2 --eval-examples 20 --warmup-steps 0 "
    "--train full",
    "refine": "--min-gain 0",
    "evaluate": "--k 5 10",
}


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (
        "prepare --dataset simulated:60x30 --out runs/beauty/catalog",
        "embed --catalog runs/beauty/catalog --views text --text-encoder tfidf --out runs/beauty/views",
        "tokenize --catalog runs/beauty/catalog --views runs/beauty/views --num-levels 2 --codebook-size 4 "
        "--collision suffix_ordinal --out runs/beauty/sid",
        "extend --sid runs/beauty/sid --model micro --catalog runs/beauty/catalog --micro-layers 1 --micro-hidden 32 "
        "--out runs/beauty-smollm2-135m/base",
    ):
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    run = set()
    for words in commands_of("beauty-siit"):
        assert main([*words, *shlex.split(SMALLER[words[0]])]) == 0, capsys.readouterr().err
        run.add(Path(words[words.index("--config") + 1]).name)
    assert run == files_of("beauty-siit")
    first, second, control = (SidConfig.load(f"runs/beauty-siit/{name}")[1] for name in ("first", "second", "control"))
    assert first.sha256 == control.sha256 != second.sha256
    for test in ("test", "test-control"):
        assert "ours" in json.loads(Path(f"runs/beauty-siit/{test}/metrics.json").read_text())["systems"]
