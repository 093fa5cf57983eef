"""Memory-mapped arrays that are read once: what was read need not stay in the memory of the process."""

from __future__ import annotations

import mmap

import numpy as np


def let_go(array: np.ndarray, rows: slice) -> None:
    """Hand back the memory of some rows of a file that is mapped for reading; other arrays keep theirs.

    The rows stay in the cache of the system and are read from there, or from the file, when they are used again. An
    array that may be written to is left alone: its changes would be lost.

    Args:
        array: Whole array as it was mapped, or any other.
        rows: Rows that were read.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is None or array.flags.writeable or not array.flags.c_contiguous or not len(array):
        return
    begin, end, _ = rows.indices(len(array))
    start, size = array.offset % mmap.ALLOCATIONGRANULARITY, array.nbytes // len(array)  # type: ignore[attr-defined]
    first = -(-(start + begin * size) // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only
    last = (start + end * size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)
