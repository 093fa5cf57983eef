"""Content of one file: its bytes out of any compression, and its text out of the encoding that its first bytes name.

The name says what a file is. Where the content disagrees, the file is refused with its right name, because a wrong
name is the sign of a wrong file more often than of a wrong ending.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from llmrec.runtime import reading as files_of_others

COMPRESSIONS = {
    ".gz": b"\x1f\x8b",
    ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".bz2": b"BZh",
}
PARQUET = (".parquet", ".pq", ".parq")
OPENERS: dict[str, Callable[[Path], Any]] = {  # binary streams
    "": lambda path: path.open("rb"),
    ".gz": gzip.GzipFile,
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".zst": lambda path: pa.CompressedInputStream(str(path), "zstd"),
}
DAMAGED = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException)
JSON = (".json", ".jsonl", ".ndjson", ".jl")
FOREIGN = {
    ".xlsx": "an Excel file; save it as 'CSV UTF-8' there",
    ".xls": "an Excel file; save it as 'CSV UTF-8' there",
    ".ods": "a spreadsheet; save it as CSV in UTF-8 there",
    ".zip": "a zip archive; unpack it and give the file in it",
    ".tar": "a tar archive; unpack it and give the file in it",
    ".tgz": "a tar archive; unpack it and give the file in it",
    ".rar": "an archive; unpack it and give the file in it",
    ".7z": "an archive; unpack it and give the file in it",
    ".pkl": "a pickle, which can run code when it is read; write it with `DataFrame.to_parquet`",
    ".pickle": "a pickle, which can run code when it is read; write it with `DataFrame.to_parquet`",
    ".feather": "a Feather file; write it with `DataFrame.to_parquet`",
    ".arrow": "an Arrow file; write it with `pyarrow.parquet.write_table`",
    ".orc": "an ORC file; write it as parquet",
    ".avro": "an Avro file; write it as parquet",
    ".npy": "a NumPy array; write a table with `DataFrame.to_parquet`",
    ".npz": "a NumPy archive; write a table with `DataFrame.to_parquet`",
    ".h5": "an HDF5 file; write it with `DataFrame.to_parquet`",
    ".db": "a database; export the table as CSV or parquet",
    ".sqlite": "a database; export the table as CSV or parquet",
}
FIRST_LINES = 20
MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def endings(path: Path) -> tuple[str, str]:
    """Ending of a name without that of a compression, and that of the compression; both in lower case, or ""."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def check_kind(path: Path) -> None:
    """Refuse what is no table by its name, and what is not what its name says.

    Raises:
        ValueError: With what to do instead.
    """
    ending, compression = endings(path)
    if ending in FOREIGN:
        raise ValueError(f"'{path}' is {FOREIGN[ending]}.")
    with reading(path), path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"'{path}' is empty; give a file with a header and rows.")
    expected = COMPRESSIONS.get(compression) or (b"PAR1" if ending in PARQUET else None)
    if expected and not head.startswith(expected):
        raise ValueError(
            f"'{path}' is not a {compression or ending} file although its name says so (it begins with "
            f"{head[:16]!r}); get it again, or rename it to what it is."
        )
    if not expected and head.startswith(b"PK\x03\x04"):
        raise ValueError(f"'{path}' is an Excel file or a zip archive; save it as 'CSV UTF-8', or unpack it.")
    for ending, magic in {**COMPRESSIONS, ".parquet": b"PAR1"}.items():
        if not expected and head.startswith(magic):
            raise ValueError(
                f"'{path}' is a {ending} file although its name does not say so; let its name end in {ending}."
            )


def reading(path: Path) -> AbstractContextManager[None]:
    """Turn the errors of the libraries that read tables into one line about the file; see `llmrec.runtime.reading`."""
    return files_of_others.reading(path, "a readable table", "export it again", DAMAGED)


def content_of(path: Path, size: int = -1) -> bytes:
    """Bytes of a file, out of its compression.

    Args:
        path: The file.
        size: Number of bytes from the start; all of them if negative.

    Raises:
        ValueError: If it cannot be read, or its compression is cut or damaged.
    """
    _, compression = endings(path)
    with reading(path):
        try:
            with OPENERS[compression](path) as stream:
                return stream.read() if size < 0 else stream.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"'{path}' is a cut or damaged {compression} file ({error}); get it again.") from None


def first_lines(path: Path, size: int = 1 << 16) -> list[str]:
    """At most 20 lines from the start of a text file, without line ends and a byte-order mark; at least one.

    Args:
        path: The file.
        size: Number of bytes that are read; a line that they cut is left out if it is not the only one.
    """
    head = content_of(path, size)
    mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    text = head[: len(head) // 4 * 4 if len(head) == size else None].decode(encoding, "replace").removeprefix("\ufeff")
    lines = re.split("\r?\n" if "\n" in text else "\r", text)
    is_last_whole = len(head) < size and lines[-1] != ""
    return (lines if is_last_whole or len(lines) == 1 else lines[:-1])[:FIRST_LINES]


def text_of(path: Path, encoding: str = "utf-8") -> Path | bytes:
    """Text of a file in UTF-8 with newlines as line ends: the path itself if the file is like that, else bytes.

    Args:
        path: The file.
        encoding: Encoding of a file that has no byte-order mark and is no UTF-8.

    Raises:
        ValueError: If it cannot be read or is in another encoding; the message has the line and a remedy.
    """
    compressed = endings(path)[1] != ""
    content = content_of(path, -1 if compressed else 1 << 16)
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    if encoding == "utf-8" and not (mark or compressed or _line_end(content) or b"\0" in content):
        return path
    content = content if compressed else content_of(path)
    encoding = MARKS.get(mark, "utf-8" if _is_utf8(content) else encoding)
    content = content.removeprefix(mark) if encoding == "utf-8" else _decode(path, content, encoding).encode()
    if b"\0" in content[: 1 << 16]:
        raise ValueError(_not_utf8(path, content, content.index(b"\0")))
    line_end = _line_end(content)
    return content.replace(line_end, b"\n") if line_end else content


def _line_end(content: bytes) -> bytes | None:
    """Line end that is neither that of Unix nor that of Windows: old Mac's, or the one that csv makes in text mode."""
    if b"\r\r\n" in content:
        return b"\r\r\n"
    return b"\r" if b"\r" in content and b"\n" not in content else None


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decode(path: Path, content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' is cut or damaged: its byte {error.start} is no {encoding.upper()}; export it again."
        ) from None


def check_utf8(path: Path, source: Path | bytes) -> None:
    """Refuse text that is not UTF-8.

    Raises:
        ValueError: With line, byte and the conversion.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(path, content, error.start)) from None


def _not_utf8(path: Path, content: bytes, place: int) -> str:
    """Message for text in another encoding, which zeros in half of its bytes give away as UTF-16."""
    where = f"'{path}' is not UTF-8: line {content.count(10, 0, place) + 1}, byte {place}"
    if place > len(content) - 4 and content[place] >= 0xC2:
        return f"{where}. It ends within a character, so it was cut; get it again."
    zeros = content[:4096].count(0)
    old = "windows-1252"
    if zeros:
        if zeros < len(content[:4096]) // 4:
            return f"{where}. It has zero bytes, so it is no text; export it again as CSV in UTF-8."
        old = "utf-16be" if content[0] == 0 else "utf-16le"
    unpacked = path.name if not endings(path)[1] else path.stem
    unpack = "" if unpacked == path.name else "Unpack it, then c"
    return (
        f"{where}. {unpack or 'C'}onvert it into a new file: `iconv -f {old} -t utf-8 {unpacked} > utf8-{unpacked}`"
        f"{'' if zeros else ' (for text from Western Europe; else name its encoding after -f)'}."
    )
