"""The commands of recipes/beauty-aliases, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llmrec.cli import main
from llmrec.sid.aliases import aliases_of
from llmrec.sid.table import SidTable
from tests.support.recipes import commands_of, files_of

# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "tokenize": "",
    "extend": "--micro-layers 1 --micro-hidden 32 --micro-words 64",
    "sft": "--max-steps 4 --batch-size 16 --micro-batch-size 16 --eval-steps 2 --eval-examples 10 --warmup-steps 0",
    "evaluate": "--k 5 10 --baselines popularity --max-examples 20",
}
RQ_VAE = "--codebook-size 8 --encoder-layers 16 --latent-dim 8 --max-epochs 500"


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:80x40", "--out", "runs/beauty/catalog"]) == 0
    views = ["--views", "text", "collaborative", "--text-encoder", "tfidf", "--collaborative-dim", "16"]
    assert main(["embed", "--catalog", "runs/beauty/catalog", *views, "--out", "runs/beauty/views"]) == 0
    run = set()
    for words in commands_of("beauty-aliases"):
        smaller = RQ_VAE if words[-1].endswith("tokenize-rq-vae.yaml") else SMALLER[words[0]]
        assert main([*words, *shlex.split(smaller)]) == 0, capsys.readouterr().err
        run.add(Path(words[words.index("--config") + 1]).name)
    assert run == files_of("beauty-aliases")
    for name in ("", "-rq-vae"):
        assert len(aliases_of(SidTable.load(f"runs/beauty-aliases/sid{name}"))) == 4
        assert "ours" in json.loads(Path(f"runs/beauty-aliases/test{name}/metrics.json").read_text())["systems"]
