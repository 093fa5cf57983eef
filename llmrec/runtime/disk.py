"""Errors of a full disk: every library's version of it becomes one OSError that names the directory being written.

safetensors and polars put the message of the system into errors of their own; torch.save names no cause at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, over quota, over the limit of file sizes
TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos")


@contextlib.contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Turn any error in the block that a full disk caused into an OSError whose filename is the directory."""
    try:
        yield
    except Exception as error:
        number = full_disk_errno(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(directory)) from error


def full_disk_errno(error: BaseException | None) -> int | None:
    """The errno of the full disk that caused an exception, or None if something else caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        for number in FULL:
            if os.strerror(number) in str(error):
                return number
        if isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_WRITER):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None
