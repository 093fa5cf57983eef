"""Codes of more vectors than fit on a device: blocks of rows travel there while the block before is being encoded.

A block is copied from its source (often a memory-mapped file) into pinned memory by a few threads, since one thread
reads a mapped file at a fraction of what the bus takes. There are two such buffers, and the device is waited for only
when a buffer is to be filled again.

Shapes: N items, L levels, K codes of a level, D dimension, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from llmrec.tokenizers.residual import nearest

BLOCK_BYTES = 128 * 2**20  # of each of the two buffers
COPY_THREADS = 8


def encode_residual(
    source: np.ndarray | Tensor, codebooks: Sequence[Tensor], device: torch.device | str = "cpu"
) -> np.ndarray:
    """Codes of each vector: at each level the code nearest to what the levels before have left.

    Args:
        source: (N, D) vectors, taken as float32: an array, a memory-mapped one, or a tensor on any device.
        codebooks: (K, D) float32 per level; K may differ between levels.
        device: Where distances are computed.

    Returns:
        (N, L) int64.

    Raises:
        ValueError: If there is no codebook, or the source and the codebooks are not matrices of one width.
    """
    shapes = [tuple(book.shape) for book in codebooks]
    if not shapes or any(len(shape) != 2 or shape[1:] != tuple(source.shape[1:]) for shape in shapes):
        raise ValueError(
            f"codebooks of shapes {shapes} cannot encode vectors of shape {tuple(source.shape)}; "
            "give one (K, D) codebook per level for (N, D) vectors."
        )
    device = torch.device(device)
    books = [book.to(device) for book in codebooks]
    codes_NL = torch.empty(len(source), len(books), dtype=torch.int64, device=device)
    for first, block_BD in _blocks(source, device):
        codes_NL[first : first + len(block_BD)] = _encode(block_BD, books)
    return codes_NL.cpu().numpy()


def _encode(left_BD: Tensor, codebooks: list[Tensor]) -> Tensor:
    """(B, L) int64 codes of a block."""
    codes = []
    for codebook_KD in codebooks:
        codes.append(nearest(left_BD, codebook_KD)[0])
        left_BD = left_BD - codebook_KD[codes[-1]]
    return torch.stack(codes, 1)


def _blocks(source: np.ndarray | Tensor, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """First row and (B, D) float32 rows on the device, block after block."""
    rows = max(1, BLOCK_BYTES // (4 * source.shape[1]))
    if isinstance(source, Tensor):
        for first in range(0, len(source), rows):
            yield first, source[first : first + rows].to(device, torch.float32)
    elif device.type == "cuda":
        yield from _blocks_through_pinned_memory(source, device, rows)
    else:
        for first in range(0, len(source), rows):
            yield first, torch.from_numpy(np.array(source[first : first + rows], np.float32))


def _blocks_through_pinned_memory(source: np.ndarray, device: torch.device, rows: int) -> Iterator[tuple[int, Tensor]]:
    buffers = [torch.empty(min(rows, len(source)), source.shape[1], pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers]
    with ThreadPoolExecutor(COPY_THREADS) as threads:
        for i, first in enumerate(range(0, len(source), rows)):
            part = source[first : first + rows]
            buffer_BD, event = buffers[i % 2][: len(part)], copied[i % 2]
            event.synchronize()
            _fill(buffer_BD.numpy(), part, threads)
            block_BD = buffer_BD.to(device, non_blocking=True)
            event.record()
            yield first, block_BD


def _fill(target_BD: np.ndarray, part_BD: np.ndarray, threads: ThreadPoolExecutor) -> None:
    """Copy rows, a share of them in each thread; NumPy lets go of the interpreter while it copies."""
    bounds = np.linspace(0, len(part_BD), COPY_THREADS + 1).astype(int)
    shares = [slice(*pair) for pair in pairwise(bounds)]
    list(threads.map(lambda share: np.copyto(target_BD[share], part_BD[share], casting="same_kind"), shares))
