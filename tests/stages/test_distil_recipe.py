"""The commands of recipes/distil-smollm2-135m, in their order and with its YAML files, only smaller."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from llmrec.cli import build_parser, main

RECIPE = Path(__file__).parents[2] / "recipes" / "distil-smollm2-135m"
# Data, model, sizes and steps; every other option is the recipe's.
SMALLER = {
    "prepare": "--dataset simulated:80x40",
    "embed": "--text-encoder tfidf",
    "tokenize": "--codebook-size 8",
    "teach-sasrec": "--hidden 16 --max-epochs 2",
    "extend": "--model micro --micro-hidden 32 --micro-layers 1 --catalog runs/distil/catalog",
    "sft": "--max-steps 4 --batch-size 16 --micro-batch-size 16 --eval-steps 2 --eval-examples 20 --compile false",
}


def commands() -> list[list[str]]:
    """Words of the README's commands."""
    blocks = re.findall(r"```bash\n(.*?)```", (RECIPE / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [
        shlex.split(line.replace("$R", str(RECIPE)), comments=True)[1:]
        for block in blocks
        for line in block.splitlines()
        if line.startswith("llmrec ")
    ]


def test_the_recipe_runs_as_its_readme_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = set()
    for words in commands():
        recipe = Path(words[words.index("--config") + 1])
        smaller = SMALLER.get(recipe.stem) or SMALLER.get(words[0], "")
        assert main([*words, *shlex.split(smaller)]) == 0, capsys.readouterr().err
        run.add(recipe.name)
    assert run == {path.name for path in RECIPE.glob("*.yaml")}

    metrics = json.loads(Path("runs/distil/test/metrics.json").read_text())
    assert set(metrics["systems"]) == {
        "ours",
        "sasrec",
        "item_knn",
        "graph",
        "teacher",
    }  # under the names of their directories
    has_item_rows = {
        out: "mixture_weight" in json.loads(Path(f"runs/distil/{out}/llmrec.json").read_text())
        for out in ("sft", "sft-full", "sft-item-rows", "sft-decoder")
    }
    assert has_item_rows == {"sft": False, "sft-full": False, "sft-item-rows": True, "sft-decoder": True}


@pytest.mark.parametrize("stage", ["prepare", "embed"])
def test_the_flags_for_other_data_are_understood(stage):
    table = re.findall(r"^\| [^|]+\| ([^|]*)\| ([^|]*)\|$", (RECIPE / "README.md").read_text(), flags=re.MULTILINE)
    flags = [cells[stage == "embed"].strip("` ") for cells in table if "--" in cells[stage == "embed"]]
    assert len(flags) == {"prepare": 4, "embed": 1}[stage]
    for line in flags:
        words = [stage, "--config", str(RECIPE / f"{stage}.yaml"), *shlex.split(line)]
        assert build_parser(words).parse_args(words).stage == stage
