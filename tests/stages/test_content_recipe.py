"""The commands of recipes/beauty-cllm4rec, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from llmrec.cli import main

RECIPE = Path(__file__).parents[2] / "recipes" / "beauty-cllm4rec"
# Data, sizes and steps; every other option is the recipe's.
SMALLER = {
    "tokenize": "",
    "extend": "--model micro --micro-layers 1 --micro-hidden 32",
    "sft": "--epochs 2 --masked-epochs 1 --batch-size 40 --micro-batch-size 40 --eval-steps 2 --eval-examples 20 "
    "--warmup-steps 0",
    "evaluate": "--k 5 10",
}


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "simulated:80x40", "--out", "runs/beauty/catalog"]) == 0
    block = re.search(r"```bash\n(.*?)```", (RECIPE / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    run = set()
    for line in block.splitlines():
        if line.startswith("llmrec "):
            words = shlex.split(line.replace("$R", str(RECIPE)))[1:]
            assert main([*words, *shlex.split(SMALLER[words[0]])]) == 0, capsys.readouterr().err
            run.add(Path(words[words.index("--config") + 1]).name)
    assert run == {path.name for path in RECIPE.glob("*.yaml")}
    result = Path("runs/beauty-cllm4rec")
    assert "ours" in json.loads((result / "test" / "metrics.json").read_text())["systems"]
    assert (result / "sft" / "content.safetensors").is_file()
