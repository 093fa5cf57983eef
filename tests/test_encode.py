"""Streaming gives the codes of the plain loop, from arrays, tensors and memory-mapped files, in any block size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmrec.tokenizers import encode
from llmrec.tokenizers.encode import encode_residual

pytestmark = pytest.mark.usefixtures("one_thread")


def problem() -> tuple[np.ndarray, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(103, 5, generator=generator).numpy()
    return vectors, [torch.randn(size, 5, generator=generator) / (level + 1) for level, size in enumerate((8, 4, 6))]


def plain(vectors: np.ndarray, codebooks: list[torch.Tensor]) -> np.ndarray:
    codes = []
    for vector in vectors.astype(np.float64):
        left, row = vector, []
        for book in codebooks:
            row.append(int(np.square(left - book.double().numpy()).sum(1).argmin()))
            left = left - book[row[-1]].double().numpy()
        codes.append(row)
    return np.array(codes)


@pytest.mark.parametrize("rows", [1, 10, 103, 1000])
def test_blocks_of_any_size_equal_the_plain_loop(rows, monkeypatch):
    monkeypatch.setattr(encode, "BLOCK_BYTES", 4 * 5 * rows)
    vectors, codebooks = problem()
    before = vectors.copy()
    for source in (vectors, torch.from_numpy(vectors)):
        codes = encode_residual(source, codebooks)
        assert codes.dtype == np.int64
        np.testing.assert_array_equal(codes, plain(vectors, codebooks))
    np.testing.assert_array_equal(vectors, before)


def test_a_memory_mapped_file_is_read_block_by_block(tmp_path, monkeypatch, recwarn):
    vectors, codebooks = problem()
    vectors.tofile(tmp_path / "vectors.bin")
    mapped = np.memmap(tmp_path / "vectors.bin", np.float32, "r", shape=vectors.shape)
    monkeypatch.setattr(encode, "BLOCK_BYTES", 4 * 5 * 20)
    np.testing.assert_array_equal(encode_residual(mapped, codebooks), plain(vectors, codebooks))
    assert not recwarn.list


def test_other_types_are_taken_as_float32():
    vectors, codebooks = problem()
    half = vectors.astype(np.float16)
    np.testing.assert_array_equal(encode_residual(half, codebooks), plain(half.astype(np.float32), codebooks))


@pytest.mark.parametrize("rows", [0, 1, 3, 100])
def test_threads_fill_every_row_of_a_buffer(rows):
    part, target = np.arange(4 * rows, dtype=np.float64).reshape(rows, 4), np.full((rows, 4), -1, np.float32)
    with ThreadPoolExecutor(2) as threads:
        encode._fill(target, part, threads)
    np.testing.assert_array_equal(target, part)


def test_codebooks_of_another_width_are_refused():
    vectors, codebooks = problem()
    with pytest.raises(ValueError, match=r"shapes \[\(8, 5\), \(4, 4\)\] cannot encode vectors of shape \(103, 5\)"):
        encode_residual(vectors, [codebooks[0], codebooks[1][:, :4]])
    with pytest.raises(ValueError, match="codebooks of shapes"):
        encode_residual(vectors, [])


@pytest.mark.gpu
def test_through_pinned_buffers_to_a_gpu(tmp_path, monkeypatch):
    vectors, codebooks = problem()
    vectors.tofile(tmp_path / "vectors.bin")
    mapped = np.memmap(tmp_path / "vectors.bin", np.float32, "r", shape=vectors.shape)
    for rows in (10, 1000):
        monkeypatch.setattr(encode, "BLOCK_BYTES", 4 * 5 * rows)
        np.testing.assert_array_equal(encode_residual(mapped, codebooks, "cuda"), plain(vectors, codebooks))
