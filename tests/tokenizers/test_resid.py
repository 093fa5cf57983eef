"""ReSID's three stages, apart from each other, and its ablation of the second by the recipes' files."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from llmrec.sid.table import SidTable
from llmrec.stages import embed
from llmrec.views.famae import TRAINING, famae_view
from tests.support.prepared import run_json

RECIPE = Path(__file__).parents[2] / "recipes" / "simulated-resid"
ABLATION = {
    "tokenize": ("gaoq", ["--branching", 2, 3, 8]),
    "tokenize-hierarchical-kmeans": ("hierarchical_kmeans", ["--branching", 2, 3, 8]),
    "tokenize-rq-vae": ("rq_vae", ["--codebook-size", 4, "--max-epochs", 2]),
}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_tokenizer_of_the_ablation_takes_the_view_of_famae(capsys, monkeypatch, tmp_path):
    short = dataclasses.replace(TRAINING, max_epochs=1)
    monkeypatch.setattr(embed, "famae_view", functools.partial(famae_view, training=short))
    run_json(capsys, "prepare", "--config", RECIPE / "prepare.yaml", "--out", tmp_path / "catalog",
             "--dataset", "simulated:60x40", "--k-core", 3)  # fmt: skip
    given = ["--catalog", tmp_path / "catalog"]
    embedded = run_json(capsys, "embed", "--config", RECIPE / "embed.yaml", *given, "--famae-dim", 4,
                        "--out", tmp_path / "views")  # fmt: skip
    assert embedded["views"]["famae"]["dim"] == 8  # the item and its category
    tables = {}
    for name, (method, small) in ABLATION.items():
        report = run_json(capsys, "tokenize", "--config", RECIPE / f"{name}.yaml", *given, "--views",
                          tmp_path / "views", "--out", tmp_path / name, *small)  # fmt: skip
        tables[name] = SidTable.load(tmp_path / name)
        assert report["method"] == method and report["after_policy"]["collision_rate"] == 0
    assert len({table.sha256 for table in tables.values()}) == 3
    assert tables["tokenize"].level_sizes == tables["tokenize-hierarchical-kmeans"].level_sizes == [2, 3, 8]


def test_the_recipes_of_all_catalogues_have_the_same_ablation():
    for folder in RECIPE.parent.glob("*-resid"):
        assert ABLATION.keys() == {file.stem for file in folder.glob("tokenize*.yaml")}
