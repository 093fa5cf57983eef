"""One file of a user's, opened: its format, encoding and compression, and what to do when it cannot be read."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from llmrec.data.public_formats import read_bytes


def open_file(path: Path) -> tuple[pl.DataFrame, bool]:
    """Read the rows of a file.

    Args:
        path: .csv or .parquet file (or .xz of it).

    Returns:
        The rows, cells of a CSV as text; and whether row i stands in line i + 2.

    Raises:
        ValueError: If the file is absent, empty, of another kind, or damaged.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".xz" else path.suffix
    if suffix not in (".csv", ".parquet"):
        raise ValueError(f"'{path}' is neither .csv nor .parquet (plain or .xz); convert it to one of them.")
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; check the path.")
    content = read_bytes(path)
    try:
        if suffix == ".parquet":
            return pl.read_parquet(io.BytesIO(content)), False
        text = _decode(path, content).rstrip("\r\n")
        frame = pl.read_csv(io.BytesIO(text.encode()), infer_schema=False)
        return frame, text.count("\n") == frame.height
    except pl.exceptions.NoDataError:
        raise ValueError(f"'{path}' is empty; give a file with a header and rows.") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"'{path}' is not a valid {suffix[1:]} file ({reason}); export it again.") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"'{path}' is not UTF-8: line {line}, byte {error.start}. Convert it, "
            f"for example with `iconv -f latin1 -t utf-8 {path.name}`."
        ) from error
