"""The embed stage through the command line: views on disk, resumption, and errors that come before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmrec.cli import main
from llmrec.stages import embed
from llmrec.views import ItemViews
from tests.support.prepared import run_json, write_catalog


@pytest.fixture
def prepared(tmp_path, catalog):
    return write_catalog(tmp_path / "catalog", catalog.items, catalog._split)


def test_views_of_the_stage(capsys, tmp_path, prepared):
    result = run_json(capsys, "embed", "--catalog", prepared.source, "--out", tmp_path / "views",
                      "--text-encoder", "tfidf", "--collaborative-dim", 3)  # fmt: skip
    views = ItemViews.load(tmp_path / "views", prepared)
    assert result["views"]["text"] == {"dim": 12, "missing": 0}
    assert {name: view.vectors.shape for name, view in views.items()} == {"collaborative": (12, 3), "text": (12, 12)}
    assert views["text"].provenance["template"] == "{text}" and views["text"].provenance["encoder"] == "tfidf"
    trained = set(prepared.train.values) | set(prepared.train.targets)
    assert set(np.flatnonzero(views["collaborative"].missing)) == set(range(12)) - trained


def test_views_of_places(capsys, tmp_path, prepared):
    places = pa.table({"lat": np.linspace(40, 41, 12), "lon": np.linspace(-74, -73, 12)})
    for name in places.column_names:
        prepared.items = prepared.items.append_column(name, places[name])
    placed = write_catalog(tmp_path / "placed", prepared.items, prepared._split)
    argv = ["embed", "--catalog", placed.source, "--views", "spatial", "geographic", "--collaborative-dim", 4,
            "--out"]  # fmt: skip
    result = run_json(capsys, *argv, tmp_path / "views")
    assert result["views"]["geographic"] == {"dim": 64, "missing": 0}
    assert result["views"]["spatial"] == {"dim": 4, "missing": 0}
    at = prepared.items.column_names.index("lat")
    wrong = prepared.items.set_column(at, "lat", pa.array(np.linspace(89, 91, 12)))
    lost = write_catalog(tmp_path / "lost", wrong, prepared._split)
    argv[2] = lost.source
    assert main([str(part) for part in (*argv, tmp_path / "none")]) == 2
    assert "item-" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_resumed_run_keeps_finished_views_and_equals_an_undisturbed_one(tmp_path, prepared, monkeypatch):
    argv = ["embed", "--catalog", prepared.source, "--text-encoder", "tfidf", "--out"]
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
        (["--views", "odour"], "there is no 'odour': choose from text, collaborative, sasrec, lightgcn"),
        (["--views", "lightgnc"], "there is no 'lightgnc': did you mean 'lightgcn'?"),
        (["--views", "collaborative", "collaborative"], "name each view at most once"),
        (["--views", "sasrec", "--collaborative-dim", "5"], "the two heads of 'sasrec' need an even one"),
        (["--views", "image", "--external", "image.npy"], "external 'image.npy' is not name=path"),
        (["--views", "image", "--external", "../image=image.npy"], "external '../image=image.npy' is not name=path"),
        (["--views", "text", "--external", "text=image.npy"], "has the name of a view of llmrec's own"),
        (["--views", "image", "--external", "image=a.npy", "image=b.npy"], "external names 'image' twice"),
        (["--views", "collaborative", "--external", "image=image.npy"], "external gives 'image', but views is"),
        (["--views", "image", "--external", "image=nowhere.npy"], "'nowhere.npy' does not exist"),
        (["--views", "collaborative", "--collaborative-dim", "0"], "collaborative_dim is 0; at least 1"),
        (["--text-dim", "8"], "'text_dim' in the command line; removed: TF-IDF vectors have 128 dimensions"),
        (["--text-encoder", "tfidf", "--text-template", "{brand}"], "it has no ['brand']"),
        (["--text-encoder", "tfidf", "--device", "abacus"], "Unknown device 'abacus'"),
    ],
)
def test_wrong_configs_leave_nothing_behind(capsys, tmp_path, prepared, flags, message):
    out = tmp_path / "views"
    assert main(["embed", "--catalog", prepared.source, "--out", str(out), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() and not Path(f"{out}.partial").exists()


def save_image(path: Path, scale: float = 1.0) -> str:
    np.save(path, scale * np.arange(24.0).reshape(12, 2))
    return f"image={path}"


def test_every_source_at_once_feeds_tokenize(capsys, tmp_path, prepared):
    result = run_json(capsys, "embed", "--catalog", prepared.source, "--out", tmp_path / "views",
                      "--views", "text", "collaborative", "sasrec", "lightgcn", "image", "--text-encoder", "tfidf",
                      "--collaborative-dim", 4, "--external", save_image(tmp_path / "v.npy"))  # fmt: skip
    views = ItemViews.load(tmp_path / "views", prepared)
    assert set(views) == set(result["views"]) == {"text", "collaborative", "sasrec", "lightgcn", "image"}
    trained = set(prepared.train.values) | set(prepared.train.targets)
    for name in ("sasrec", "lightgcn"):
        assert views[name].vectors.shape == (12, 4)
        assert set(np.flatnonzero(views[name].missing)) == set(range(12)) - trained
    assert views["image"].vectors[11].tolist() == [22, 23]
    run_json(capsys, "tokenize", "--catalog", prepared.source, "--views", tmp_path / "views",
             "--out", tmp_path / "sid", "--codebook-size", 4)  # fmt: skip


def test_a_changed_external_file_is_noticed_and_a_moved_one_is_the_same(capsys, tmp_path, prepared):
    argv = ["embed", "--catalog", str(prepared.source), "--out", str(tmp_path / "views"), "--views", "image"]
    assert main([*argv, "--external", save_image(tmp_path / "v.npy")]) == 0
    assert main([*argv, "--external", save_image(tmp_path / "moved.npy")]) == 0
    assert main([*argv, "--external", save_image(tmp_path / "v.npy", scale=2.0)]) == 2
    assert "is the result of another run (its input 'external image' has changed)" in capsys.readouterr().err


def test_an_external_view_named_like_an_option_leaves_it_in_the_identity(capsys, tmp_path, prepared):
    save_image(tmp_path / "v.npy")
    argv = ["embed", "--catalog", str(prepared.source), "--out", str(tmp_path / "views"), "--views", "seed",
            "--external", f"seed={tmp_path / 'v.npy'}"]  # fmt: skip
    assert main([*argv, "--seed", "1"]) == 0
    assert main([*argv, "--seed", "2"]) == 2
    assert "seed was 1, now 2" in capsys.readouterr().err


def test_trained_views_that_are_finished_are_not_trained_again(tmp_path, prepared, monkeypatch):
    argv = ["embed", "--catalog", str(prepared.source), "--collaborative-dim", "4", "--views", "sasrec", "lightgcn",
            "--out"]  # fmt: skip
    assert main([*argv, str(tmp_path / "whole")]) == 0
    trained = dict(embed.TRAINED)

    def dying(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(embed.TRAINED, "lightgcn", dying)
    assert main([*argv, str(tmp_path / "out")]) == 130
    monkeypatch.setitem(embed.TRAINED, "lightgcn", trained["lightgcn"])
    monkeypatch.setitem(embed.TRAINED, "sasrec", dying)
    assert main([*argv, str(tmp_path / "out")]) == 0
    for name in ("sasrec.safetensors", "lightgcn.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_log_that_can_give_no_held_out_item_is_refused_before_any_text_is_embedded(capsys, tmp_path, catalog):
    """Of every user the first training item alone."""
    split = catalog._split.to_pylist()
    rows = [row | {"history": [], "target": row["history"][0]} for row in split if row["split"] == "train"]
    prepared = write_catalog(tmp_path / "catalog", catalog.items, pa.Table.from_pylist(rows, catalog._split.schema))
    argv = ["embed", "--catalog", str(prepared.source), "--out", str(tmp_path / "views"), "--text-encoder", "tfidf"]
    assert main([*argv, "--views", "text", "lightgcn"]) == 2
    assert "None of the 6 training sequences" in capsys.readouterr().err
    assert not list(tmp_path.glob("views*"))


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
