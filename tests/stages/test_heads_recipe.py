"""The commands of recipes/beauty-heads, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llmrec.cli import main
from tests.support.recipes import commands_of, files_of

# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "tokenize": "--num-levels 4 --codebook-size 8 --pca-dim 16",
    "extend": "--micro-layers 1 --micro-hidden 32",
    "sft": "--max-steps 6 --batch-size 16 --micro-batch-size 16 --eval-steps 3 --eval-examples 20 --warmup-steps 0",
    "evaluate": "--k 5 10",
}


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:80x40", "--out", "runs/beauty/catalog"]) == 0
    views = ["--views", "text", "collaborative", "--text-encoder", "tfidf", "--collaborative-dim", "16"]
    assert main(["embed", "--catalog", "runs/beauty/catalog", *views, "--out", "runs/beauty/views"]) == 0
    run = set()
    for words in commands_of("beauty-heads"):
        assert main([*words, *shlex.split(SMALLER[words[0]])]) == 0, capsys.readouterr().err
        run.add(Path(words[words.index("--config") + 1]).name)
    assert run == files_of("beauty-heads")
    for out, kind in (("test", "codes"), ("test-vectors", "vectors")):
        assert "ours" in json.loads(Path(f"runs/beauty-heads/{out}/metrics.json").read_text())["systems"]
        sft = Path("runs/beauty-heads/sft" + out.removeprefix("test"))
        assert json.loads((sft / "llmrec.json").read_text())["vocabulary"]["head"]["kind"] == kind
