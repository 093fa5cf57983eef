"""The embed stage through the command line: views on disk, resumption, and errors that come before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from prepared import run_json, write_catalog

from llmrec.cli import main
from llmrec.stages import embed
from llmrec.views import ItemViews


@pytest.fixture
def prepared(tmp_path, catalog):
    return write_catalog(tmp_path / "catalog", catalog.items, catalog._split)


def test_views_of_the_stage(capsys, tmp_path, prepared):
    result = run_json(capsys, "embed", "--catalog", prepared.source, "--out", tmp_path / "views",
                      "--text-encoder", "tfidf", "--text-dim", 4, "--collaborative-dim", 3)  # fmt: skip
    views = ItemViews.load(tmp_path / "views", prepared)
    assert result["views"]["text"] == {"dim": 4, "missing": 0}
    assert {name: view.vectors.shape for name, view in views.items()} == {"collaborative": (12, 3), "text": (12, 4)}
    assert views["text"].provenance["template"] == "{text}" and views["text"].provenance["encoder"] == "tfidf"
    trained = set(prepared.train.values) | set(prepared.train.targets)
    assert set(np.flatnonzero(views["collaborative"].missing)) == set(range(12)) - trained


def test_a_resumed_run_keeps_finished_views_and_equals_an_undisturbed_one(tmp_path, prepared, monkeypatch):
    argv = ["embed", "--catalog", prepared.source, "--text-encoder", "tfidf", "--text-dim", "4", "--out"]
    assert main([*argv, str(tmp_path / "whole")]) == 0
    build_view, built = embed.build_view, []

    def dying(name, *arguments):
        if name == "collaborative" and not built:
            built.append("died")
            raise KeyboardInterrupt
        built.append(name)
        return build_view(name, *arguments)

    monkeypatch.setattr(embed, "build_view", dying)
    built.clear()
    assert main([*argv, str(tmp_path / "out"), "--views", "collaborative", "text"]) == 130
    monkeypatch.setattr(embed, "build_view", build_view)
    assert not (tmp_path / "out").exists()
    assert main([*argv, str(tmp_path / "out"), "--views", "collaborative", "text"]) == 0
    for name in ("text.safetensors", "collaborative.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--views", "text"], "text_encoder is needed for the view 'text'"),
        (["--views", "smell"], "name each of text, collaborative at most once"),
        (["--views", "collaborative", "--collaborative-window", "0"], "collaborative_window is 0; at least 1"),
        (["--text-encoder", "tfidf", "--text-template", "{brand}"], "it has no ['brand']"),
        (["--text-encoder", "tfidf", "--device", "abacus"], "Unknown device 'abacus'"),
    ],
)
def test_wrong_configs_leave_nothing_behind(capsys, tmp_path, prepared, flags, message):
    out = tmp_path / "views"
    assert main(["embed", "--catalog", prepared.source, "--out", str(out), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() and not Path(f"{out}.partial").exists()


def test_movietweetings_titles_in_two_views(capsys, tmp_path, data_dir):
    """Real log: 4,333 users with at least five ratings; law 1 holds as only the train rows are read."""
    run_json(capsys, "prepare", "--dataset", "movietweetings", "--out", tmp_path / "catalog")
    result = run_json(capsys, "embed", "--catalog", tmp_path / "catalog", "--out", tmp_path / "views",
                      "--text-encoder", "tfidf")  # fmt: skip
    assert result["num_items"] == 2414
    assert result["views"]["text"] == {"dim": 128, "missing": 0}
    report = run_json(capsys, "tokenize", "--catalog", tmp_path / "catalog", "--views", tmp_path / "views",
                      "--out", tmp_path / "sid", "--codebook-size", 64)  # fmt: skip
    assert report["after_policy"]["collision_rate"] == 0
    assert min(level["usage"] for level in report["levels"][:3]) > 0.95
    assert json.loads((tmp_path / "sid" / "manifest.json").read_text())["counts"]["num_items"] == 2414
