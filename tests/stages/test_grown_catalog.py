"""A catalogue that grows: prepare --append-to, embed --append, tokenize --append, extend; then what is recommended."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from llmrec.cli import main
from llmrec.configs import EmbedConfig, PrepareConfig, TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.recommender import Recommender
from llmrec.sid.table import SidTable
from llmrec.stages import embed, prepare, tokenize
from llmrec.views import ItemViews
from llmrec.views.tfidf import FILE, Tfidf
from tests.stages.test_prepare_append import START, write, write_log

WORDS = ("red", "green", "blue", "old", "new", "small", "large", "tin", "wood", "glass", "cup", "chair")
HEADER = "item_id,title,lat,lon"


def title(number: int) -> str:
    return f"{WORDS[number % 4]} {WORDS[4 + number % 3]} {WORDS[7 + number % 5]}"


def places(number: int) -> tuple[float, float]:
    return 40 + number / 100, -70 - number / 50


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A catalogue and its views, before and after three items are appended; only read."""
    root = tmp_path_factory.mktemp("grown")
    items = [(f"i{n}", title(n), *places(n)) for n in range(24)]
    log = [(f"u{u}", f"i{(5 * u + 7 * step) % 24}", START + 100 * step + u) for u in range(40) for step in range(7)]
    old = {"interactions": write_log(root / "log.csv", log), "items": write(root / "items.csv", HEADER, items)}
    prepare.main(PrepareConfig(out=str(root / "old"), **old))
    fresh = [("n0", "red new tin", *places(30)), ("n1", "unheard", *places(31)), ("n2", "blue old cup", "", "")]
    more = [(f"u{u}", f"n{u % 3}", START + 9000) for u in range(6)]
    new = {"interactions": write_log(root / "more.csv", more), "items": write(root / "more-items.csv", HEADER, fresh)}
    prepare.main(PrepareConfig(out=str(root / "new"), append_to=str(root / "old"), **new))
    views = ["text", "collaborative", "geographic"]
    options = {"views": views, "text_encoder": "tfidf", "collaborative_dim": 4}
    embed.main(EmbedConfig(out=str(root / "old-views"), catalog=str(root / "old"), **options))
    embed.main(EmbedConfig(out=str(root / "new-views"), catalog=str(root / "new"), append=str(root / "old-views")))
    return root


def test_old_vectors_stay_to_the_bit_and_new_items_get_theirs(root):
    old, new = Catalog.load(root / "old"), Catalog.load(root / "new")
    before, after = ItemViews.load(root / "old-views", old), ItemViews.load(root / "new-views", new)
    assert list(before) == list(after) == ["collaborative", "geographic", "text"]
    for name, view in after.items():
        assert np.array_equal(view.vectors[: old.num_items], before[name].vectors)
        assert np.array_equal(view.missing[: old.num_items], before[name].missing)
    missing = {name: [bool(view.missing[new.row_of[f"n{n}"]]) for n in range(3)] for name, view in after.items()}
    assert missing == {
        "text": [False, True, False], "geographic": [False, False, True], "collaborative": [True, True, True],
    }  # fmt: skip
    text = after["text"].vectors
    words = [set(t.split()) for t in new.titles]
    alike = np.argsort(-text[: old.num_items] @ text[new.row_of["n0"]])[0]
    assert len(words[alike] & {"red", "new", "tin"}) == max(len(of & {"red", "new", "tin"}) for of in words[:24])


def test_an_old_text_has_the_vector_that_it_had(root):
    """Two routes: the vectors of the fit, and those of the words, weights and axes that were kept."""
    old = Catalog.load(root / "old")
    rows, vectors = Tfidf.load(root / "old-views").transform(old.titles)
    fitted = ItemViews.load(root / "old-views", old)["text"]
    assert rows.tolist() == np.flatnonzero(~fitted.missing).tolist()
    assert np.allclose(vectors, fitted.vectors[rows], atol=1e-6)


@pytest.mark.parametrize("names", [["text"], ["text", "collaborative"]])
def test_published_semantic_ids_stay_and_new_items_get_theirs(root, tmp_path, names):
    """TF-IDF and co-occurrence were refused here: fitted anew, they are other vectors."""
    options = {"view_names": names, "options": {"num_levels": 2, "codebook_size": 4}}
    old = {"catalog": str(root / "old"), "views": str(root / "old-views")}
    tokenize.main(TokenizeConfig(out=str(tmp_path / "sid"), **old, **options))
    new = {"catalog": str(root / "new"), "views": str(root / "new-views")}
    tokenize.main(TokenizeConfig(out=str(tmp_path / "more"), append=str(tmp_path / "sid"), **new))
    before, after = SidTable.load(tmp_path / "sid"), SidTable.load(tmp_path / "more")
    assert after.item_ids[:24] == before.item_ids and after.num_items == 27
    assert np.array_equal(after.codes(np.arange(24)), before.codes(np.arange(24)))
    assert len({tuple(codes) for codes in after.codes(np.arange(27)).tolist()}) == 27


@pytest.mark.usefixtures("one_thread")
def test_from_a_catalogue_to_a_model_of_the_grown_one(root, tmp_path, capsys):
    """Every command of docs/tokenize.md#new-items, to an evaluation on the new catalogue."""

    def llmrec(stage: str, *flags: object) -> dict:
        capsys.readouterr()
        assert main([stage, *map(str, flags), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    old, new = ("--catalog", root / "old"), ("--catalog", root / "new")
    sid, base, model = tmp_path / "sid", tmp_path / "base", tmp_path / "model"
    views = ("--views", root / "old-views", "--view-names", "text")
    llmrec("tokenize", *old, *views, "--codebook-size", 4, "--num-levels", 2, "--out", sid)
    llmrec("extend", "--sid", sid, "--model", "micro", *old, "--micro-hidden", 32, "--micro-layers", 1, "--out", base,
           "--spare-codes", 8)  # fmt: skip
    llmrec("sft", *old, "--model", base, "--train", "full", "--max-steps", 4, "--batch-size", 8, "--max-history", 6,
           "--micro-batch-size", 8, "--device", "cpu", "--out", model)  # fmt: skip
    llmrec("tokenize", *new, "--views", root / "new-views", "--append", sid, "--out", tmp_path / "more-sid")
    grown = llmrec("extend", "--model", model, "--sid", tmp_path / "more-sid", "--out", tmp_path / "more-model")
    assert grown["new_items"] == 3
    result = llmrec("evaluate", *new, "--model", tmp_path / "more-model", "--device", "cpu", "--baselines",
                    "popularity", "--out", tmp_path / "eval")  # fmt: skip
    assert result["num_items"] == 27 and result["overlap"] is None
    before = llmrec("evaluate", *new, "--model", model, "--device", "cpu", "--baselines", "popularity", "--out",
                    tmp_path / "eval-before")  # fmt: skip
    assert before["num_items"] == 24 and before["overlap"]["items"] == {
        "shown": 24, "gone": 0, "new": 3, "retitled": 0,
    }  # fmt: skip
    # Six users went on to a new item, which the model from before does not know.
    assert before["overlap"]["examples"] == {
        "tested": 34, "unknown_target": 6, "no_known_history": 0, "target_may_be_learned": 0,
    }  # fmt: skip
    recommender = Recommender.from_pretrained(tmp_path / "more-model", device="cpu")
    assert {"n0", "n1", "n2"} <= set(recommender.recommend([["i0", "n1"]], k=27, exclude=None)[0][0])


def test_views_of_another_catalogue_and_other_options_are_refused(root, tmp_path):
    new, old = str(root / "new"), str(root / "old")
    out = {"out": str(tmp_path / "views")}
    cases = {
        "was not made by `llmrec prepare --append-to`": {"catalog": old, "append": str(root / "old-views")},
        "of another catalogue than the one": {"catalog": new, "append": str(root / "new-views")},
        "text_encoder is 'all-MiniLM-L6-v2', there 'tfidf'": {
            "catalog": new, "append": str(root / "old-views"), "text_encoder": "all-MiniLM-L6-v2",
        },
        "views is ['text', 'sasrec'], there": {
            "catalog": new, "append": str(root / "old-views"), "views": ["text", "sasrec"],
        },
    }  # fmt: skip
    for message, options in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            embed.main(EmbedConfig(**out, **options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PK cut")])
def test_words_that_are_lost_are_named(root, tmp_path, damage):
    catalog = Catalog.load(root / "old")
    Tfidf.fit(catalog.titles, 8, 0)[0].save(tmp_path)
    assert Tfidf.load(tmp_path).transform(["red red tin"])[0].tolist() == [0]
    damage(tmp_path / FILE)
    with pytest.raises(ValueError, match=r"tfidf\.npz'.*run `llmrec embed` again"):
        Tfidf.load(tmp_path)
