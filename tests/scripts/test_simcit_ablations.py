"""The ablations of SimCIT through the command line, and a view that is corrupted on purpose."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec.tokenizers import load_tokenizer
from llmrec.views import ItemViews
from tests.diagnostics.test_diagnostics import build_catalog
from tests.support.clustered import books_of, clusters, views_of
from tests.support.prepared import run_json, write_catalog

pytestmark = pytest.mark.slow  # experiments run on demand
FOLDER = Path(__file__).parents[2] / "scripts" / "experiments"
# What a variant asks for beside this wins, but that codebooks are a sixteenth of its own, for 40 items.
SMALL = {
    "codebook_size": 4, "encoder_layers": [8], "latent_dim": 8, "max_epochs": 5, "learning_rate": 1e-2,
    "anneal_steps": 6,
}  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import corrupt_view
    import simcit_ablations

    yield simcit_ablations, corrupt_view
    for name in {"grid", "decoder", "beauty_tokenizers", "corrupt_view", "simcit_ablations"} - before:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A catalogue of 40 items and two views of them, one of which misses an item."""
    root, rng = tmp_path_factory.mktemp("simcit"), np.random.default_rng(0)
    built = build_catalog(40, rng.integers(0, 40, (30, 6)).tolist())
    write_catalog(root / "catalog", built.items, built._split)
    behaviour = clusters(40, 4, 8)
    behaviour[3] = 0
    (root / "views").mkdir()
    views_of(text=clusters(40, 6, 8), collaborative=behaviour).save(root / "views")
    return root


def corrupt(corrupt_view, monkeypatch, data: Path, out: Path, share: float) -> Path:
    words = ["--catalog", data / "catalog", "--views", data / "views", "--name", "text", "--share", share, "--out", out]
    monkeypatch.setattr(sys, "argv", ["corrupt_view.py", *map(str, words)])
    corrupt_view.main()
    return out


def test_every_ablation_runs_from_the_command_line(scripts, data, tmp_path, capsys, monkeypatch):
    ablations, corrupt_view = scripts
    monkeypatch.setattr(
        "llmrec.stages.tokenize.page.render", lambda *parts, **named: ""
    )  # which takes most of the time
    others = {"text corrupted": corrupt(corrupt_view, monkeypatch, data, tmp_path / "corrupt", 0.5)}
    assert others.keys() == ablations.OTHER_VIEWS.keys()
    found = {}
    for number, name in enumerate(ablations.VARIANTS):
        options = {**SMALL, **ablations.options_of(name)}
        options["codebook_size"] = options["codebook_size"] // (16 if options["codebook_size"] > 8 else 1)
        given = {"catalog": data / "catalog", "views": others.get(name, data / "views"), "out": tmp_path / str(number)}
        words = sys.modules["grid"].flags({**given, **options, "device": "cpu", "allow_collapse": True})
        run_json(capsys, "tokenize", *words)
        saved = load_tokenizer(tmp_path / str(number))
        assert all(getattr(saved, option) == value for option, value in options.items() if hasattr(saved, option))
        assert saved.view_names == options["view_names"]
        found[name] = books_of(saved)[-1].numpy().tobytes()
    # A variant that changes nothing would be another name for the base; batches here all take the whole catalogue.
    batches = {name for name in found if name.startswith("batch")}
    assert {found[name] for name in batches} == {found["base"]}
    assert len({found[name] for name in found.keys() - batches}) == len(found) - len(batches)


def test_a_variant_is_an_option_or_another_view(scripts):
    """One flag each, but for what belongs together, such as a law and its value, or a batch and its parts."""
    ablations = scripts[0]
    for name, changed in ablations.VARIANTS.items():
        allowed = {"temperature_law": 2, "noise_law": 2, "batch_size": 2, "num_levels": 2, "hard_codes": 3}
        assert len(changed) <= max((allowed.get(option, 1) for option in changed), default=1), name
        assert (not changed) == (name == "base" or name in ablations.OTHER_VIEWS), name


def test_a_corrupted_view_keeps_its_vectors_but_not_their_items(scripts, data, tmp_path, monkeypatch):
    from llmrec.data.catalog import Catalog

    out = corrupt(scripts[1], monkeypatch, data, tmp_path / "corrupt", 0.5)
    catalog = Catalog.load(data / "catalog")
    before, after = (ItemViews.load(path, catalog) for path in (data / "views", out))
    moved = (before["text"].vectors != after["text"].vectors).any(axis=1)
    assert moved.sum() == 20
    assert sorted(before["text"].vectors.tolist()) == sorted(after["text"].vectors.tolist())
    np.testing.assert_array_equal(before["collaborative"].vectors, after["collaborative"].vectors)
    np.testing.assert_array_equal(before["collaborative"].missing, after["collaborative"].missing)
    assert after["text"].provenance["corrupted"] == "0.5 with seed 0"
    whole = scripts[1].corrupted(before["collaborative"], 1.0, 1)
    assert whole.missing[3] and not whole.vectors[3].any()
    assert (whole.vectors != before["collaborative"].vectors).any(axis=1).sum() == 39


@pytest.mark.parametrize(("flag", "value", "says"), [("--share", "2", "0 to 1"), ("--name", "image", "'text'")])
def test_what_cannot_be_corrupted_is_refused(scripts, data, tmp_path, monkeypatch, capsys, flag, value, says):
    words = ["--catalog", data / "catalog", "--views", data / "views", "--name", "text", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["corrupt_view.py", *map(str, words), flag, value])
    with pytest.raises(SystemExit):
        scripts[1].main()
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
