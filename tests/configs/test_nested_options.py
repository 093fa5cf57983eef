"""A block of options that another dataclass checks: read from YAML, filled by flags, every problem named at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from llmrec.configs.file import load_config
from llmrec.configs.options import Config, option


@dataclass(kw_only=True)
class KMeans(Config):
    renamed: ClassVar = {"clusters": "codebook_size"}

    codebook_size: int = option("Codes of a level.", 256, least=2)
    view_weights: list[float] | None = option("Weight of each view.", None)


@dataclass(kw_only=True)
class Sorted(Config):
    key: str = option("Column to sort by.")


@dataclass(kw_only=True)
class Stage(Config):
    method: str = option("Tokenizer.", "kmeans")
    tokenizer: dict[str, object] = option("Options of the tokenizer.", {})
    seed: int = option("Seed.", 0)


@pytest.fixture
def load(tmp_path):
    def load(text: str, **flags: object) -> Stage:
        (tmp_path / "run.yaml").write_text(text)
        kind = Sorted if "method: sorted" in text else KMeans
        return load_config(Stage, tmp_path / "run.yaml", flags, {"tokenizer": kind})

    return load


def test_a_block_holds_the_values_given_in_the_types_of_its_dataclass(load):
    config = load("seed: 1\ntokenizer:\n  codebook_size: 8\n  view_weights: [1, 2]\n")
    assert config == Stage(seed=1, tokenizer={"codebook_size": 8, "view_weights": [1.0, 2.0]})
    assert load("").tokenizer == {}


def test_flags_of_the_other_dataclass_go_into_the_block_and_win(load):
    assert load("", codebook_size="8").tokenizer == {"codebook_size": 8}
    assert load("tokenizer: {codebook_size: 8}\n", codebook_size="4").tokenizer == {"codebook_size": 4}
    assert load("method: sorted\n", key="title").tokenizer == {"key": "title"}


def test_a_block_is_no_flag_and_is_not_suggested_as_one(load):
    with pytest.raises(ValueError, match="unknown key 'tokenizer' in the command line; give each option of the block"):
        load("tokenizer: {codebook_size: 8}\n", tokenizer=None)
    with pytest.raises(ValueError, match="unknown key 'tokeniser' in the command line; known keys: method, seed"):
        load("", tokeniser=None)


def test_a_default_is_not_shared_between_instances():
    assert Stage().tokenizer is not Stage().tokenizer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: {codebook_sice: 4}", "unknown key 'tokenizer.codebook_sice' in "),
        ("tokenizer: {clusters: 4}", "it is now called 'codebook_size'"),
        ("clusters: 4", "is an option of the block 'tokenizer'; move it below `tokenizer:`"),
        ("codebook_size: 4", "is an option of the block 'tokenizer'; move it below `tokenizer:`"),
        ("codebook_sice: 4", "did you mean 'codebook_size'?"),
        ("tokenizer: {codebook_size: 1}", "tokenizer.codebook_size is 1; at least 2 is needed (in "),
        ("tokenizer: {codebook_size: x}", "tokenizer.codebook_size is 'x'; an integer is needed (in "),
        ("tokenizer: 5", "tokenizer is '5'; a block of `key: value` lines is needed (in "),
        ("tokenizer: {codebook_size: 4}\ncodebook_size: 4", "move it below `tokenizer:`"),
        ("tokenizer: {codebook_size: 4, codebook_size: 8}", "sets codebook_size more than once"),
        ("tokenizer: {seed: 4}", "'tokenizer.seed' in "),
        ("tokenizer: {seed: 4}", " is an option of the stage; move it out of `tokenizer:`"),
        ("tokenizer: {null: 4}", "unknown key 'tokenizer.None' in "),
        ("tokenizer: &again\n  clusters: *again", "it is now called 'codebook_size'"),
        ("method: sorted", "'tokenizer.key' is required: Column to sort by."),
    ],
)
def test_problems_of_a_block_name_their_place(load, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(text + "\n")


def test_problems_of_stage_and_block_are_reported_together(load):
    with pytest.raises(ValueError, match=r"tokenizer.codebook_size is 1.*seed is 'x'|seed is 'x'.*codebook_size is 1"):
        load("seed: x\ntokenizer: {codebook_size: 1}\n")


def test_a_block_that_is_no_mapping_is_refused_in_python_too():
    with pytest.raises(ValueError, match="tokenizer is 5; a block"):
        Stage(tokenizer=5)
