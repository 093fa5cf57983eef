"""The tree stays small enough to be read: folders, files, functions, and chains of classes."""

from __future__ import annotations

import ast

import pytest

from tests.test_imports import MODULES, ROOT

ONE_FILE_EACH = {ROOT / name for name in ("configs", "tokenizers", "stages")}  # one file is one stage or one method
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()}
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def test_the_root_has_few_modules():
    assert len(list(ROOT.glob("[!_]*.py"))) <= 4


@pytest.mark.parametrize("folder", sorted({path.parent for path in TREES} - ONE_FILE_EACH), ids=lambda path: path.name)
def test_folders_stay_small(folder):
    assert len(list(folder.glob("*.py"))) <= 15


@pytest.mark.parametrize("path", sorted(TREES), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 300
    functions = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in functions if node.end_lineno - node.lineno >= 60} == set()


def chain(name: str) -> int:
    """Number of classes of llmrec from a class up to its furthest base, itself included."""
    bases = {node.id for base in CLASSES[name].bases for node in ast.walk(base) if isinstance(node, ast.Name)}
    return 1 + max((chain(base) for base in bases & CLASSES.keys() - {name}), default=0)


def test_chains_of_classes_stay_short():
    assert {name for name in CLASSES if chain(name) > 3} == set()
