"""Files that are whole or absent, and errors of the file system that name the file and the true cause.

safetensors, polars and pyarrow put the message of the system into errors of their own, torch.save often names no cause
at all, and a failed `write` of Python names no file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, over quota, over the limit of file sizes
# What a file or directory can fail with; a network or a process has other numbers.
OF_FILES = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOENT,
            errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY,
            errno.ESTALE, errno.ENODEV, errno.ENXIO)  # fmt: skip
NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")  # of Rust's libraries, and of pyarrow
PLACE = re.compile(r"at path \"(.+?)\"|local file '(.+?)'|\(os error \d+\): (.+)")
TORCH_CAUSE = re.compile(r"failed with strerror: (.+)")
TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos", "basic_ios::clear")
SWEPT = (".tmp*", "*.tmp")  # names of unfinished files: those of safetensors, and our own
REMEDIES = {
    **dict.fromkeys(FULL, "Free some space (or raise the limit), then run the same command again; it continues."),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "Raise the limit of open files (`ulimit -n`), then run the same command again."
    ),
    errno.EROFS: "The file system can only be read; choose a path on another one, or mount it for writing.",
    errno.EIO: "Check the disk and its free space, or choose a path on another one; then run the same command again.",
}
REMEDY = "Check the path and its permissions."


@contextlib.contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Turn any error of the file system in the block into an OSError that names the file, else the directory.

    Args:
        directory: Directory or file that the block writes.

    Raises:
        OSError: If the file system was the cause, whichever library noticed it.
    """
    try:
        yield
    except Exception as error:
        found = cause(error, directory)
        if found is None or found is error:
            raise
        raise found from error


def cause(error: BaseException, directory: Path) -> OSError | None:
    """The failure of the file system behind an error, as an OSError with a file name; None if there is none.

    Args:
        error: Error that reached the caller.
        directory: Name for an error that names no file.
    """
    is_full = full_disk(error)
    if is_full is not None:
        return OSError(is_full, os.strerror(is_full), str(directory))
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in OF_FILES or error.filename:
            return error
        return OSError(error.errno, os.strerror(error.errno), place_in(str(error)) or str(directory))
    if isinstance(error, ValueError):  # ours: it says more than the system does
        return None
    text = str(error)
    named = NUMBER.search(text)
    if named is None:
        return _torch_cause(error, directory)
    number = int(named[1] or named[2])
    return OSError(number, os.strerror(number), place_in(text) or str(directory)) if number in OF_FILES else None


def full_disk(error: BaseException | None) -> int | None:
    """The errno of the full disk that caused an exception, or None if something else caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        for number in FULL:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def place_in(text: str) -> str | None:
    """File that the message of a library names; the directory of one that is temporary."""
    found = PLACE.search(text)
    if found is None:
        return None
    path = Path(next(filter(None, found.groups())))
    return str(path.parent if any(map(path.match, SWEPT)) else path)


def _torch_cause(error: BaseException, directory: Path) -> OSError | None:
    """The failure behind an error of torch.save, which a test of the directory tells where torch does not."""
    text = str(error)
    told = TORCH_CAUSE.search(text)
    if told:
        number = next((number for number in OF_FILES if os.strerror(number) == told[1].strip()), errno.EIO)
        return OSError(number, told[1].strip(), str(directory))
    if not isinstance(error, RuntimeError) or not any(words in text for words in TORCH_WRITER):
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".tmp") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        assert found.errno is not None
        return OSError(found.errno, os.strerror(found.errno), str(directory))
    return OSError(errno.EIO, "a file could not be written, and torch does not say why", str(directory))


def remedy(number: int | None) -> str:
    """Sentence that says what to do about an error of the file system."""
    return REMEDY if number is None else REMEDIES.get(number, REMEDY)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file so that a reader, a kill or a power cut sees the old file or the new one, never half of it.

    Args:
        path: File to write or to replace.

    Yields:
        Path to write to, in the same directory; it gets the name of the file when the block ends without an error.

    Raises:
        OSError: If the file cannot be written; the error names it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        except Exception:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def flush(path: Path) -> None:
    """Call fsync on a file, or on the list of names of a directory; without it a power cut can undo a rename."""
    if os.name != "posix":  # Windows flushes what is open for writing, and no directory
        if path.is_file():
            with path.open("r+b") as handle:
                os.fsync(handle.fileno())
        return
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
