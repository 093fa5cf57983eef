"""The example of docs/tokenizers.md, `Add a tokenizer`, is complete: it runs, is saved, loads and is appended to."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from llmrec.cli import main
from llmrec.sid.table import SidTable
from llmrec.tokenizers import TOKENIZERS, load_tokenizer
from llmrec.views import ItemViews, View
from tests.support.prepared import run_json, write_catalog

PAGE = Path(__file__).parents[2] / "docs" / "tokenizers.md"


@pytest.fixture
def method(monkeypatch) -> str:
    """Name of the method of the page, which is registered as the walk says."""
    blocks = re.findall(r"^   ```python\n(.*?)^   ```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (code,) = [textwrap.dedent(block) for block in blocks if "ItemTokenizer" in block]
    module = types.ModuleType("random_centres")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    (kind,) = [each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__]
    assert f'`"{kind.method}": {kind.__name__}`' in PAGE.read_text(encoding="utf-8")
    monkeypatch.setitem(TOKENIZERS, kind.method, kind)
    return kind.method


def test_the_example_of_the_page_is_a_method_of_llmrec_tokenize(method, capsys, tmp_path, catalog):
    prepared = write_catalog(tmp_path / "catalog", catalog.items, catalog._split)
    (tmp_path / "views").mkdir()
    vectors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    ItemViews(text=View(vectors, np.zeros(12, bool))).save(tmp_path / "views")
    given = ["tokenize", "--method", method, "--catalog", prepared.source, "--views", tmp_path / "views",
             "--num-levels", 2, "--codebook-size", 4, "--device", "cpu"]  # fmt: skip
    hashes = {run_json(capsys, *given, "--out", tmp_path / name)["sid_sha256"] for name in ("sid", "again")}
    assert len(hashes) == 1
    loaded, views = load_tokenizer(tmp_path / "sid", "cpu"), ItemViews.load(tmp_path / "views", prepared)
    codes = SidTable.load(tmp_path / "sid").codes(range(12))[:, :2]
    np.testing.assert_array_equal(loaded.encode(prepared, views).codes, codes)
    append = ["tokenize", "--append", tmp_path / "sid", *given[3:7], "--device", "cpu", "--out", tmp_path / "appended"]
    assert run_json(capsys, *append)["notes"] == ["No new items: all 12 keep their semantic IDs."]
    assert main([str(part) for part in (*given, "--codebook-size", 1, "--out", tmp_path / "bad")]) == 2
    assert "codebook_size is 1; at least 2 is needed" in capsys.readouterr().err


def test_the_diff_of_the_walk_is_the_code_of_today():
    """Each line that the diff adds stands in its file; lines of `…` stand for others."""
    root = PAGE.parents[1]
    page = (PAGE.parent / "extending.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines: set[str] = set()
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            lines = set((root / line.removeprefix("+++ b/")).read_text(encoding="utf-8").splitlines())
        elif line.startswith("+") and "…" not in line:
            assert line[1:] in lines, line
    assert diff.count("+++ b/") == 4


def test_the_page_of_identifiers_has_no_number_that_was_not_measured():
    """Its results are those of a table of the tokenizers, in a row of the same method."""
    measured, advice = PAGE.read_text(encoding="utf-8"), (PAGE.parent / "identifiers.md").read_text(encoding="utf-8")
    results = [
        (method, result)
        for method, rest in re.findall(r"^\|[^|`]*\| `(\w+)`([^\n]*)", advice, re.MULTILINE)
        for result in re.findall(r"\.\d{4} / \.\d{4}", rest)
    ]
    assert len(results) >= 16
    for method, result in results:
        assert re.search(rf"^\|(?: L\d)? `?\**{method}.*{re.escape(result)}", measured, re.MULTILINE), (method, result)


def test_every_method_has_a_row_and_its_own_name():
    page = PAGE.read_text(encoding="utf-8")
    for name, kind in TOKENIZERS.items():
        assert kind.method == name
        assert re.search(rf"^\|[^|]*`{name}`", page, re.MULTILINE), name


def test_a_method_stands_two_classes_above_config():
    """Reading its file, its base and the parts that it names is enough."""
    for kind in TOKENIZERS.values():
        assert [base.__name__ for base in kind.__mro__[1:3]] == ["ItemTokenizer", "Config"]
