"""ItemIds and its look-ups against lists and dicts."""

import hashlib
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import item_ids as module
from llmrec.data.item_ids import ItemIds, TextOf, Texts

IDS = st.lists(st.text(max_size=3), max_size=30)


@given(IDS)
def test_texts_read_like_a_list(texts):
    ours = Texts(texts)
    assert (
        list(ours) == texts
        and ours == texts
        and texts == ours
        and ours == Texts(pa.chunked_array([pa.array(texts, pa.string())]))
    )
    assert (
        ours[1:3] == texts[1:3] and len(ours) == len(texts) and [ours[np.int64(i)] for i in range(len(texts))] == texts
    )
    assert ours != [*texts, "x"] and pa.array(ours, pa.string()).to_pylist() == texts
    assert np.array(ours, dtype=object).tolist() == texts and np.array(ours).dtype.kind == "U"


@pytest.mark.parametrize("wrong", [5, None, float("nan"), b"b", np.int64(5)])
def test_what_is_no_text_is_refused_by_its_place(wrong):
    with pytest.raises(ValueError, match=r"at place 1 is no text; write ids and titles as text"):
        ItemIds(["a", wrong])


@pytest.mark.parametrize("one_hash", [False, True])
@given(IDS, st.lists(st.text(max_size=3), max_size=9))
def test_rows_are_those_of_a_dict(one_hash, texts, asked):
    texts = list(dict.fromkeys(texts))
    with pytest.MonkeyPatch.context() as patch:
        if one_hash:  # then every look-up meets other ids of its hash
            patch.setattr(module, "hash", len, raising=False)
        ids = ItemIds(texts)
        row_of, expected = ids.row_of, {item_id: row for row, item_id in enumerate(texts)}
        asked = [*texts, *asked, "?"]
        rows = [expected.get(item_id, -1) for item_id in asked]
        assert row_of.rows(asked).tolist() == row_of.rows(pa.array(asked)).tolist() == rows
        assert [row_of.get(item_id, -1) for item_id in asked] == rows and dict(row_of) == expected
        assert [item_id in ids for item_id in asked] == [item_id in expected for item_id in asked]
        titles = [item_id * 2 for item_id in texts]
        assert TextOf(ids, Texts(titles)).of(asked) == [titles[row] if row >= 0 else None for row in rows]


@pytest.mark.parametrize("of", [lambda ids: ids.row_of, lambda ids: TextOf(ids, Texts(["A", "B", "C"])).row_of])
def test_another_process_with_other_hashes_finds_the_same_rows(of, monkeypatch):
    monkeypatch.setattr(module, "hash", lambda text: -ord(text), raising=False)
    ids = ItemIds(["c", "a", "b"])
    sent = pickle.dumps((ids, of(ids)))
    monkeypatch.setattr(module, "hash", ord, raising=False)
    for row_of in (pickle.loads(sent)[0].row_of, pickle.loads(sent)[1]):
        assert row_of.rows(["a", "b", "c", "d"]).tolist() == [1, 2, 0, -1] and row_of["b"] == 2


@pytest.mark.parametrize("one_hash", [False, True])
@given(st.lists(st.sampled_from("abcdefgh"), max_size=12))
def test_the_first_repeated_id_is_that_of_a_scan(one_hash, texts):
    with pytest.MonkeyPatch.context() as patch:
        if one_hash:
            patch.setattr(module, "hash", len, raising=False)
        expected = next((row for row, item_id in enumerate(texts) if item_id in texts[row + 1 :]), None)
        assert ItemIds(texts).first_repeated == expected


@pytest.mark.parametrize("texts", [["a", "b", "c"], ["a\n", "b"], [""], ["é", "b"]])
def test_the_hash_is_that_of_one_text(texts, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    digest, lines = hashlib.sha256(), "\n".join(texts).encode()
    ItemIds(texts).hash_into(digest)
    if any("\n" in text for text in texts):
        lines = b"\xff" + json.dumps(texts).encode()
    assert digest.hexdigest() == hashlib.sha256(lines).hexdigest()
