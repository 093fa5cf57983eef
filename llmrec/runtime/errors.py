"""Errors at the end of the command line: what happened, where and what to do, in one line instead of a traceback.

Errors that llmrec raises itself say all of that already. Any other one is a case that no check of ours foresaw: its
traceback goes to a log file, and the message asks for a report.
"""

from __future__ import annotations

import contextlib
import platform
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from llmrec import __version__
from llmrec.runtime import disk, processes
from llmrec.runtime.console import inert
from llmrec.runtime.manifest import ERROR_LOG

ISSUES = "https://github.com/llmrec/llmrec/issues"
LONGEST = 400  # characters of a library's message
OF_INPUT, OF_LLMREC = 2, 1  # exit statuses


def explain(error: BaseException, argv: Sequence[str], out: str | None, lighter: str) -> tuple[int, str]:
    """Put an error that ends a command into one line for the person at the terminal.

    Args:
        error: Error that reached the command line.
        argv: Command line, for the log of an error that nobody foresaw.
        out: Result that the stage was to write, beside which the log is put.
        lighter: Sentence that says how the stage needs less memory.

    Returns:
        Exit status, 2 if the input or the machine is at fault and 1 if llmrec is; and the line.
    """
    text = inert(" ".join(str(error).split())) or type(error).__name__
    if is_out_of_memory(error):
        return OF_INPUT, f"{first_sentences(text)} {lighter}"
    if processes.count() > 1 and is_lost_process(error):
        return OF_INPUT, (
            f"another of the {processes.count()} processes has ended or does not answer, so process "
            f"{processes.rank()} stops; the launcher names the first that failed. Run the same command again to "
            "continue."
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return OF_INPUT, inert(f"{error.filename}: {error.strerror}. {disk.remedy(error.errno)}")
    if isinstance(error, ValueError | OSError | ModuleNotFoundError) and is_ours(error):
        return OF_INPUT, text
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    try:
        log = f"with {inert(str(write_log(error, argv, out)))}, which has its traceback"
    except OSError:  # no file can be written
        log = "with its traceback, which LLMREC_TRACEBACK=1 shows"
    return OF_LLMREC, (
        f"{type(error).__name__}: {shown} (llmrec did not foresee this error; please report it at {ISSUES} {log}.)"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """True if torch, numpy, pyarrow or Python could not have the memory they asked for."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, not imported here
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in text)
    )


def is_lost_process(error: BaseException) -> bool:
    """True if torch could not reach another process of the launch; gloo and NCCL say so in their own ways."""
    is_named = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return is_named or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def first_sentences(text: str) -> str:
    """Message of torch about memory, without its advice on allocator settings."""
    return text.partition("Of the allocated memory")[0].strip()


def is_ours(error: BaseException) -> bool:
    """True if llmrec itself raised the error; its message then says what to do."""
    frames = list(traceback.walk_tb(error.__traceback__))
    package = frames[-1][0].f_globals.get("__package__") if frames else ""
    return (package or "").partition(".")[0] == "llmrec"


def write_log(error: BaseException, argv: Sequence[str], out: str | None) -> Path:
    """Write the traceback of an error beside `out`, or into the directory for temporary files.

    Returns:
        The file.

    Raises:
        OSError: If neither place can be written.
    """
    text = "".join(
        (
            f"llmrec {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
            f"llmrec {' '.join(argv)}\n\n",
            *traceback.format_exception(error),
        )
    )
    if out:
        beside = Path(f"{out.rstrip('/')}{ERROR_LOG}")
        with contextlib.suppress(OSError, ValueError):
            beside.write_text(text, encoding="utf-8", errors="backslashreplace")
            return beside
    with tempfile.NamedTemporaryFile("w", prefix="llmrec-", suffix=ERROR_LOG, delete=False, encoding="utf-8",
                                     errors="backslashreplace") as file:  # fmt: skip
        file.write(text)
    return Path(file.name)
