"""Files of others, read so that whatever is wrong with them is one sentence with the file and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def reading(
    path: str | Path, kind: str, remedy: str, errors: tuple[type[BaseException], ...] = (Exception,)
) -> Iterator[None]:
    """Turn the errors of a block that reads a file into a ValueError that names the file.

    pyarrow, polars, safetensors, numpy and json have more errors for a damaged file than their documentation names.

    Args:
        path: File that is read.
        kind: Kind of file that it should be, such as `a parquet file`.
        remedy: Next step of the user, as the end of a sentence.
        errors: What says that the content is wrong: everything, in a block that does nothing but read.

    Raises:
        ValueError: If the block fails so, or the system cannot read the file.

    >>> import json
    >>> with reading("a.json", "JSON", "write it again"):
    ...     json.loads("{")
    Traceback (most recent call last):
    ValueError: 'a.json' is not JSON (Expecting property name enclosed in double quotes: line 1 ...
    """
    try:
        yield
    except MemoryError:
        raise
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; {remedy}.") from None
    except BaseException as error:  # a panic of polars is no Exception
        if not isinstance(error, (OSError, *errors)):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"'{path}' cannot be read ({error.strerror}); check it and its rights.") from None
        raise ValueError(f"'{path}' is not {kind} ({_reason(error)}); {remedy}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return first_line(error)[:300]


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
