"""Commands of a recipe's README, with the paths of its YAML files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def commands_of(recipe: str) -> list[list[str]]:
    """Words of the commands of the first block of a recipe's README, behind `llmrec`; $R is its folder."""
    folder = RECIPES / recipe
    block = re.search(r"```bash\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    lines = [line for line in block.splitlines() if line.startswith("llmrec ")]
    return [shlex.split(line.replace("$R", str(folder)))[1:] for line in lines]


def files_of(recipe: str) -> set[str]:
    """Names of its YAML files."""
    return {path.name for path in (RECIPES / recipe).glob("*.yaml")}
