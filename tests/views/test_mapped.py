"""Rows of mapped files that are handed back: their content stays, the memory of the process does not."""

import numpy as np

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


def test_other_arrays_are_left_alone():
    array = np.arange(12).reshape(4, 3)
    let_go(array, slice(0, 4))
    assert array.tolist() == np.arange(12).reshape(4, 3).tolist()
