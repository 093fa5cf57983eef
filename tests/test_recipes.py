"""Every recipe is a config of its stage, says how it is launched, and is told of in its folder's README."""

import os
from pathlib import Path

import pytest

from llmrec.cli import option_blocks
from llmrec.configs import STAGES
from llmrec.configs.file import load_config
from llmrec.tokenizers.config import make_tokenizer

RECIPES = Path(__file__).parent.parent / "recipes"
ACCELERATE = sorted((RECIPES / "accelerate").glob("*.yaml"))
STAGE_RECIPES = sorted(set(RECIPES.rglob("*.yaml")) - set(ACCELERATE))


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def test_there_are_recipes():
    assert len(STAGE_RECIPES) >= 10
    assert ACCELERATE


@pytest.mark.parametrize("path", STAGE_RECIPES, ids=name_of)
def test_recipe_is_a_config_of_its_stage(path):
    stage = path.stem.split("-")[0]  # sft-full.yaml is a second recipe of sft
    blocks = option_blocks(stage, ["--config", str(path)])
    config = load_config(STAGES[stage], path, blocks=blocks)
    if stage == "tokenize":
        make_tokenizer(config)
    written = [value for value in vars(config).values() if isinstance(value, str) and os.path.isabs(value)]
    assert not written, f"a recipe works in any checkout, without absolute paths: {written}"


@pytest.mark.parametrize("path", STAGE_RECIPES, ids=name_of)
def test_header_is_the_launch_line(path):
    stage = path.stem.split("-")[0]
    assert f"llmrec {stage} --config recipes/{name_of(path)}" in header(path).splitlines()[0]


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_config_is_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 2
    assert f"accelerate launch --config_file recipes/{name_of(path)}" in header(path)


@pytest.mark.parametrize("folder", sorted({path.parent for path in STAGE_RECIPES}), ids=name_of)
def test_readme_names_every_recipe_of_its_folder(folder):
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in folder.glob("*.yaml") if path.name not in readme]
