"""Imports run one way along the packages, without a circle; a name is deeper than whoever uses it."""

from __future__ import annotations

import ast
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "llmrec"
# Each may import those before it, and itself.
ORDER = ("configs", "runtime", "data", "sid", "evaluation", "baselines", "views", "tokenizers", "diagnostics", "model",
         "decoding", "reports", "training", "recommender", "serve", "stages", "cli")  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


# `python -m llmrec` is the cli.
MODULES = {module_of(path): path for path in ROOT.rglob("*.py") if path.name != "__main__.py"}


def imports(module: str) -> set[str]:
    """Modules of llmrec that a module names, lazily and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys() - {"llmrec", module}


def package(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"llmrec"}))
def test_imports_run_one_way(module):
    allowed = ORDER[: ORDER.index(package(module)) + 1]
    assert {name for name in imports(module) if package(name) not in allowed} == set()


def test_no_module_imports_itself_in_a_circle():
    order = list(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())
    assert len(order) == len(MODULES)


def test_the_picture_of_the_imports_is_of_today():
    spec = importlib.util.spec_from_file_location("import_picture", ROOT.parent / ".ci" / "import_picture.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert (ROOT.parent / "docs" / "imports.svg").read_text(encoding="utf-8") == drawing.picture()
