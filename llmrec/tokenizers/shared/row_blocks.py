"""Rows of arrays that do not fit on a device: blocks travel there while the block before is being used.

A block is copied from its sources (often memory-mapped files) into pinned memory by a few threads, since one thread
reads a mapped file at a fraction of what the bus takes. There are two such buffers, and the device is waited for only
when a buffer is to be filled again.

Shapes: N rows, B rows of a block, D dimension of a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from llmrec.views.mapped import let_go

BLOCK_BYTES = 128 * 2**20  # of each of the two buffers
COPY_THREADS = 8


def blocks(
    sources: Sequence[np.ndarray], device: torch.device, rows: slice = slice(None)
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Rows of several arrays, block after block.

    Args:
        sources: (N, D) float32 arrays of one N, memory-mapped ones too; D may differ.
        device: Where the blocks go.
        rows: Rows that are wanted, all when left out.

    Yields:
        The rows of the block, and (B, D) float32 of each source on the device; on a GPU to be used before the next one.
    """
    begin, end, _ = rows.indices(len(sources[0]))
    bytes_per_row = 4 * sum(source.shape[1] for source in sources)
    size = max(1, BLOCK_BYTES // bytes_per_row)
    parts = [slice(first, min(first + size, end)) for first in range(begin, end, size)]
    if device.type == "cuda" and parts:
        yield from _through_pinned_memory(sources, parts, device)
    else:
        for part in parts:
            yield part, [torch.from_numpy(np.array(source[part], np.float32)).to(device) for source in sources]
            for source in sources:
                let_go(source, part)


def _through_pinned_memory(
    sources: Sequence[np.ndarray], parts: list[slice], device: torch.device
) -> Iterator[tuple[slice, list[Tensor]]]:
    most = max(part.stop - part.start for part in parts)
    buffers = [[torch.empty(most, source.shape[1], pin_memory=True) for source in sources] for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers]
    with ThreadPoolExecutor(COPY_THREADS) as threads:
        for i, part in enumerate(parts):
            event, found = copied[i % 2], []
            event.synchronize()
            for buffer, source in zip(buffers[i % 2], sources, strict=True):
                rows_BD = buffer[: part.stop - part.start]
                _fill(rows_BD.numpy(), source[part], threads)
                let_go(source, part)
                found.append(rows_BD.to(device, non_blocking=True))
            event.record()
            yield part, found


def _fill(target_BD: np.ndarray, part_BD: np.ndarray, threads: ThreadPoolExecutor) -> None:
    """Copy rows, a share of them in each thread; NumPy lets go of the interpreter while it copies."""
    bounds = np.linspace(0, len(part_BD), COPY_THREADS + 1).astype(int)
    shares = [slice(*pair) for pair in pairwise(bounds)]
    list(threads.map(lambda share: np.copyto(target_BD[share], part_BD[share], casting="same_kind"), shares))
