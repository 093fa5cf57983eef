"""Docstrings: every public member has one, the examples in them run, and none opens with an indirect question."""

from __future__ import annotations

import ast
import doctest
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmrec
from llmrec.model.checkpoint import SidConfig
from llmrec.model.micro import micro_model, word_tokenizer
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

ROOT = Path(llmrec.__file__).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
INDIRECT = re.compile(r"(What|How|Where|Whether|Why|Which|Of)\b")
ITEM_IDS = ["red", "green", "blue", "gold", "grey", "pink"]
CODES = [[0, 1, 2], [0, 1, 3], [1, 0, 0], [2, 2, 1], [3, 3, 3], [1, 0, 2]]


def members(name: str) -> Iterator[tuple[str, str]]:
    """A public name and the public attributes of a class, those of its own bases included, with their docstrings."""
    public = getattr(llmrec, name)
    yield name, inspect.getdoc(public) or ""
    if not inspect.isclass(public):
        return
    own = [base for base in public.__mro__ if base.__module__.startswith("llmrec")]
    attributes = {key: value for base in reversed(own) for key, value in vars(base).items()}
    for key, value in attributes.items():
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", value)
        is_member = inspect.isfunction(function) or isinstance(value, functools.cached_property)
        if is_member and (not key.startswith("_") or key == "__call__"):
            yield f"{name}.{key}", inspect.getdoc(function) or ""


DOCSTRINGS = dict(member for name in llmrec.__all__ for member in members(name))
EXAMPLES = {name: text for name, text in DOCSTRINGS.items() if ">>>" in text}


@pytest.fixture(scope="module")
def namespace(tmp_path_factory) -> dict[str, object]:
    """A checkpoint of six items and its parts, under the names that examples have for them."""
    directory = str(tmp_path_factory.mktemp("docstrings") / "checkpoint")
    table = SidTable(ITEM_IDS, CODES, level_sizes=[4, 4, 4])
    tokenizer = word_tokenizer(ITEM_IDS, max_words=64)
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    model = micro_model(tokenizer, layers=1, hidden_size=32, seed=0).eval()
    sid_config = SidConfig(vocabulary, Prompt(), max_history=10, normalize_over="vocabulary")
    recommender = Recommender(model, tokenizer, table, sid_config)
    recommender.save_pretrained(directory)
    return {
        "directory": directory, "table": table, "tokenizer": tokenizer, "model": model, "sid_config": sid_config,
        "recommender": recommender,
    }  # fmt: skip


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_every_public_member_has_a_docstring(name):
    text = DOCSTRINGS[name]
    assert text and not text.startswith(f"{name}(")  # a dataclass without one shows its signature


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_public_member_runs(name, namespace):
    module = inspect.getmodule(getattr(llmrec, name.split(".")[0]))
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {**vars(module), **namespace}, name, None, 0)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert tried and not failed, "".join(report)


def test_most_public_members_have_an_example():
    assert len(EXAMPLES) >= 30
    assert {name for name in llmrec.__all__ if name[0].isupper()} - EXAMPLES.keys() == set()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_with_a_noun_or_a_verb(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, DOCUMENTED)]
    opened = [(getattr(node, "name", path.name), ast.get_docstring(node) or "") for node in nodes]
    assert [name for name, text in opened if INDIRECT.match(text)] == []
