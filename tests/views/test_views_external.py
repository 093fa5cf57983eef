"""External vectors: the right row for every item, the others missing, and no file taken that would be misread."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import sha256_file
from llmrec.views.external import external_view
from tests.views.test_views import split_table
from tests.views.test_views_hold_out import catalog_of


def parquet(path, ids, vectors, value="float"):
    lists = pa.list_(pa.type_for_alias(value))
    pq.write_table(pa.table({"item_id": ids, "vector": pa.array(vectors, lists)}), path)
    return path


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_rows_in_any_order_and_of_some_items(tmp_path_factory, order, count):
    path = tmp_path_factory.mktemp("external") / "v.parquet"
    vectors = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    given_rows = list(order[:count])
    view = external_view("image", parquet(path, [f"item-{r}" for r in given_rows], list(vectors[given_rows])),
                         catalog_of([[0, 1]]))  # fmt: skip
    np.testing.assert_array_equal(view.vectors[given_rows], vectors[given_rows])
    assert set(np.flatnonzero(view.missing)) == set(range(12)) - set(given_rows)
    assert not view.vectors[view.missing].any()


def test_integer_ids_a_null_vector_and_an_unknown_item(tmp_path, catalog, capsys, monkeypatch):
    monkeypatch.setattr(catalog, "row_of", {str(row): row for row in range(12)})
    path = parquet(tmp_path / "v.parquet", [3, 99, 1], [[1.0, 2.0], [5.0, 6.0], None], "double")
    view = external_view("image", path, catalog)
    assert view.vectors[3].tolist() == [1, 2] and set(np.flatnonzero(~view.missing)) == {3}
    assert "1 of 3 items are not in the catalogue and left out, first ['99']" in capsys.readouterr().err
    assert view.provenance["file_sha256"] == sha256_file(path) and view.provenance["view"] == "image"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_is_in_catalogue_order(tmp_path, catalog, dtype):
    vectors = np.arange(24, dtype=dtype).reshape(12, 2)
    np.save(tmp_path / "v.npy", vectors)
    view = external_view("image", tmp_path / "v.npy", catalog)
    np.testing.assert_array_equal(view.vectors, vectors)
    assert view.vectors.dtype == np.float32 and not view.missing.any()


def test_both_formats_and_both_kinds_of_lists_agree(tmp_path, catalog, item_ids):
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    lists = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 4)
    pq.write_table(pa.table({"item_id": item_ids, "vector": lists}), tmp_path / "fixed.parquet")
    parquet(tmp_path / "list.parquet", item_ids, list(vectors))
    views = [external_view("v", tmp_path / name, catalog) for name in ("v.npy", "fixed.parquet", "list.parquet")]
    for view in views[1:]:
        np.testing.assert_array_equal(view.vectors, views[0].vectors)


def test_the_file_of_the_docs_is_taken(tmp_path, monkeypatch):
    docs = (Path(__file__).parents[2] / "docs" / "embed.md").read_text(encoding="utf-8")
    block = next(code for code in re.findall(r"```python\n(.*?)```", docs, flags=re.DOTALL) if "image.parquet" in code)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "embed.md", "exec"), {})
    items = pa.table({"item_id": ["0468569", "1", "0111161"], "title": ["a", "b", "c"]})
    view = external_view("image", "image.parquet", Catalog(items, split_table()))
    assert view.missing.tolist() == [False, True, False]
    np.testing.assert_allclose(view.vectors[2], [0.12, -0.40, 0.08], rtol=1e-6)


ONES = [[1.0, 1.0]] * 2
TWO = ["item-0", "item-1"]


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (TWO, [[1.0, 1.0], [1.0]], r"vectors of \[1, 2\] numbers"),
        (TWO, [[], []], r"vectors of \[0\] numbers"),
        (["item-0"] * 2, ONES, r"repeats 1 item_ids, first \['item-0'\]"),
        (["item-0", None], ONES, "has a row without item_id"),
        (["b", "a"], ONES, r"no vector of any item .*first item_ids \['b', 'a'\].*\['item-0', 'item-1', 'item-2'\]"),
        (TWO, [None, None], "no vector of any item"),
        (TWO, [[1.0, np.nan], [1.0, 1.0]], "NaN or infinity in 1 vectors, first of item_id 'item-0'"),
        (TWO, [[1.0, 1.0], [1.0, None]], "NaN or infinity in 1 vectors, first of item_id 'item-1'"),
        ([0.5, 1.5], ONES, "column item_id holds double; ids are text or integers"),
    ],
)
def test_parquets_that_are_refused(tmp_path, catalog, ids, vectors, message):
    with pytest.raises(ValueError, match=message):
        external_view("image", parquet(tmp_path / "v.parquet", ids, vectors), catalog)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((11, 2)), r"has 11 vectors, the catalogue 'catalog' has 12 items; .* or a \.parquet"),
        (np.ones(12), r"holds float64 \(12,\)"),
        (np.ones((12, 0)), r"holds float64 \(12, 0\)"),
        (np.ones((12, 2), np.int64), "holds int64"),
        (np.full((12, 2), 1e300), "NaN or infinity in 12 vectors"),
        (np.array([[{}]] * 12), "is not a .npy of numbers"),
    ],
)
def test_arrays_that_are_refused(tmp_path, catalog, array, message):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        external_view("image", tmp_path / "v.npy", catalog)


def test_files_that_are_none(tmp_path, catalog):
    for name, content in (("v.npy", b"no array"), ("empty.npy", b""), ("v.parquet", b"no parquet")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a \.npy|is not a parquet file"):
            external_view("image", tmp_path / name, catalog)
    with pytest.raises(ValueError, match=r"external 'image': '.*nowhere\.npy' does not exist"):
        external_view("image", tmp_path / "nowhere.npy", catalog)
    with pytest.raises(ValueError, match=r"'.*v\.csv' is neither \.parquet nor \.npy"):
        external_view("image", tmp_path / "v.csv", catalog)
    pq.write_table(pa.table({"item_id": ["item-0"], "embedding": ["x"]}), tmp_path / "v.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['vector'\]; it has \['item_id', 'embedding'\]"):
        external_view("image", tmp_path / "v.parquet", catalog)
    pq.write_table(pa.table({"item_id": ["item-0"], "vector": ["x"]}), tmp_path / "v.parquet")
    with pytest.raises(ValueError, match="column vector holds string; lists of floats are needed"):
        external_view("image", tmp_path / "v.parquet", catalog)
