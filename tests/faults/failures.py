"""System calls that fail, in a process of a test: the n-th one of Python, or every one from a moment on.

One call of Python fails by an audit hook, which is told of each file that is opened, renamed or made. Calls of every
library, whatever language it is in, fail by a seccomp filter: from then on the kernel itself answers with the error,
as a disk that is full, read-only or broken does.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable

CALLS = ("open", "rename", "mkdir", "fsync")
EVENTS = {"open": "open", "os.rename": "rename", "os.mkdir": "mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CAN_FILTER = sys.platform == "linux" and platform.machine() == "x86_64"
# Numbers of system calls on x86-64. A `write` of 8 bytes wakes a thread of polars, and goes to no file.
NUMBERS = {"write": (1, 18, 20, 296), "open": (257,), "rename": (82, 264, 316), "mkdir": (83, 258), "fsync": (74, 75)}
LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # of the kernel's packet filter
ALLOW, FAIL = 0x7FFF0000, 0x00050000
FIRST, SECOND, THIRD = 16, 24, 32  # places of the arguments of a call


def install(call: str, errno: int, under: str, number: int | None = None, after_s: float | None = None) -> None:
    """Let calls of this process fail.

    Args:
        call: open (for writing), rename, mkdir, fsync, or write.
        errno: Error that they fail with.
        under: Path; one call fails if its file lies below.
        number: Number of the call that fails, from 1.
        after_s: Seconds after which every call fails, in the place of one.
    """
    if number is not None:
        fail_once(call, errno, under, number)
        return
    signal.signal(signal.SIGALRM, lambda *_: fail_always(call, errno))
    signal.setitimer(signal.ITIMER_REAL, max(after_s or 0, 1e-6))


def fail_once(call: str, errno: int, under: str, number: int) -> None:
    """Let the n-th call on a file below a path fail."""
    calls = itertools.count(1)

    def count(path: object) -> None:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(under) and next(calls) == number:
            raise OSError(errno, os.strerror(errno), os.fspath(path))

    if call == "fsync":
        os.fsync = _counted_fsync(os.fsync, count)
        return

    def hook(event: str, arguments: tuple) -> None:
        if EVENTS.get(event) == call and (call != "open" or (arguments[2] or 0) & WRITING):
            count(arguments[0])

    sys.addaudithook(hook)


def _counted_fsync(fsync: Callable[[int], None], count: Callable[[object], None]) -> Callable[[int], None]:
    def counted(descriptor: int) -> None:
        try:
            count(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError as error:
            error.filename = None  # fsync is given a descriptor and names no file
            raise OSError(error.errno, error.strerror) from None
        fsync(descriptor)

    return counted


def fail_always(call: str, errno: int) -> None:
    """Let the kernel answer every such call of this process with an error, except on the standard streams."""
    program = [_step(LOAD, 0)]
    for number in NUMBERS[call]:
        if call == "write":  # to a descriptor above 2, of more than 8 bytes
            program += [_step(EQUAL, number, 0, 6), _step(LOAD, FIRST), _step(GREATER, 2, 0, 3), _step(LOAD, THIRD),
                        _step(GREATER, 8, 0, 1), _step(RETURN, FAIL | errno), _step(RETURN, ALLOW)]  # fmt: skip
        elif call == "open":
            program += [_step(EQUAL, number, 0, 4), _step(LOAD, THIRD), _step(ANY_BIT, WRITING, 0, 1),
                        _step(RETURN, FAIL | errno), _step(RETURN, ALLOW)]  # fmt: skip
        else:
            program += [_step(EQUAL, number, 0, 1), _step(RETURN, FAIL | errno)]
    program.append(_step(RETURN, ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which a filter of an ordinary user needs
    if libc.syscall(317, 1, 1, ctypes.byref(Program(len(program), ctypes.addressof(code)))):  # of all threads
        raise OSError(ctypes.get_errno(), "seccomp is not allowed here")


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
