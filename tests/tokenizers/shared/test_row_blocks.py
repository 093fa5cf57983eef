"""Blocks hold every row once and in order, from arrays and mapped files; codes do not depend on their size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmrec.tokenizers import RQKMeans
from llmrec.tokenizers.shared import row_blocks as module
from llmrec.tokenizers.shared.row_blocks import blocks
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews, View
from tests.support.clustered import catalog_of, points

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def sources(directory) -> list[np.ndarray]:
    """An array and a mapped file of 103 rows."""
    points(103, 3, seed=1).numpy().tofile(directory / "vectors.bin")
    return [points(103, 5).numpy(), np.memmap(directory / "vectors.bin", np.float32, "r", shape=(103, 3))]


def gathered(found) -> list[np.ndarray]:
    rows, parts = zip(*((rows, [part.cpu() for part in given]) for rows, given in found), strict=True)
    assert [part.start for part in rows] == [0, *(part.stop for part in rows[:-1])]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("rows", [1, 10, 103, 1000])
def test_every_row_comes_once_and_in_order(rows, monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 8 * rows)
    given = sources(tmp_path)
    for found, source in zip(gathered(blocks(given, CPU)), given, strict=True):
        np.testing.assert_array_equal(found, source)
    assert not recwarn.list


def test_blocks_are_copies_of_their_source(tmp_path):
    given = sources(tmp_path)
    before = given[0].copy()
    for _, parts in blocks(given, CPU):
        parts[0].zero_()
    np.testing.assert_array_equal(given[0], before)


@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_codes_do_not_depend_on_the_size_of_blocks(rows, monkeypatch, tmp_path):
    known = np.arange(103) % 10 > 0
    views = ItemViews({f"view{i}": View(source, ~known) for i, source in enumerate(sources(tmp_path))})
    tokenizer = RQKMeans(num_levels=2, codebook_size=8, device="cpu").fit(catalog_of(103), views)
    vectors = JointVectors(catalog_of(103), views)
    whole = vectors.of(np.arange(103))
    assert not whole[~known].any() and torch.allclose(whole[known].norm(dim=1), torch.tensor(2.0).sqrt())
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 8 * rows)
    codes = tokenizer.encode(catalog_of(103), views).codes
    np.testing.assert_array_equal(codes, tokenizer.coder.quantizer.codes(whole).numpy())


@pytest.mark.parametrize("rows", [0, 1, 3, 100])
def test_threads_fill_every_row_of_a_buffer(rows):
    part, target = np.arange(4 * rows, dtype=np.float64).reshape(rows, 4), np.full((rows, 4), -1, np.float32)
    with ThreadPoolExecutor(2) as threads:
        module._fill(target, part, threads)
    np.testing.assert_array_equal(target, part)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [10, 1000])
def test_through_pinned_buffers_to_a_gpu(rows, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 8 * rows)
    given = sources(tmp_path)
    for found, source in zip(gathered(blocks(given, torch.device("cuda"))), given, strict=True):
        np.testing.assert_array_equal(found, source)
