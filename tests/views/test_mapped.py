"""Rows of mapped files that are handed back: their content stays, the memory of the process does not."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmrec.views import View, read_view
from llmrec.views.mapped import let_go


def resident() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssFile"))


def test_the_memory_shrinks_and_the_rows_stay(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40_000, 64)).astype(np.float32)  # 10 MB
    View(vectors, np.zeros(len(vectors), bool)).save(tmp_path / "v.safetensors")
    view = read_view(tmp_path / "v.safetensors", [])
    let_go(view.vectors, slice(0, len(vectors)))
    before = resident()
    total = float(view.vectors.sum())
    assert resident() - before > 5_000  # kB: the sum has read the file
    for first in range(0, len(vectors), 999):
        let_go(view.vectors, slice(first, first + 999))
    assert resident() - before < 5_000
    np.testing.assert_array_equal(view.vectors, vectors)
    assert float(view.vectors.sum()) == total


def test_other_arrays_are_left_alone(tmp_path):
    array = np.arange(6000).reshape(2000, 3)
    array.tofile(tmp_path / "numbers")
    changed = np.memmap(tmp_path / "numbers", array.dtype, "c", shape=array.shape)
    changed += 1
    for each, expected in ((array, array.copy()), (changed, array + 1)):
        let_go(each, slice(0, len(each)))
        np.testing.assert_array_equal(each, expected)


def test_vectors_that_were_read_are_not_written_to(tmp_path):
    """A change would be lost as soon as the memory of its rows is handed back."""
    View(np.ones((3, 2), np.float32), np.zeros(3, bool)).save(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="read-only"):
        read_view(tmp_path / "v.safetensors", []).vectors[0] += 1


@pytest.mark.parametrize("num_items", [1, 7, 70_000])
def test_a_file_written_in_blocks_is_that_of_safetensors(tmp_path, num_items):
    vectors, missing = np.random.default_rng(0).random((num_items, 3), np.float32), np.zeros(num_items, bool)
    view = View(vectors, missing, {"encoder": 'a "b" é', "dim": "3"})
    view.save(tmp_path / "ours")
    provenance = json.dumps(view.provenance, sort_keys=True)
    save_file({"vectors": vectors, "missing": missing}, tmp_path / "theirs", metadata={"provenance": provenance})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
