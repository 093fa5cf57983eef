"""Rows of a file of any format, or of the parts of a directory as Spark, pandas and Hive write them.

Parts are read in the order of their paths. Files and folders whose names begin with `_` or `.` are no data. A folder
`country=DE` is the column `country` of all rows below it.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from llmrec.data.intake.files.content import (
    JSON,
    PARQUET,
    check_kind,
    check_utf8,
    content_of,
    endings,
    first_lines,
    reading,
    text_of,
)  # fmt: skip
from llmrec.data.intake.files.delimited import open_delimited
from llmrec.data.intake.files.json_lines import open_json_lines
from llmrec.data.intake.files.rows import UNNAMED, Rows, clean_names, numbered
from llmrec.data.intake.public.arrange import arrange, rows_of_text
from llmrec.data.intake.public.by_line import of_lines
from llmrec.data.intake.public.by_name import of_names

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
INDEX = "__index_level_"  # pandas writes its index under this name; it numbers the rows


def open_rows(path: str | Path, separator: str | None = None) -> Rows:
    """Open a file or a directory of parts.

    Args:
        path: CSV or other delimited text, JSON lines or parquet; text may be compressed (.gz, .xz, .zst, .bz2).
        separator: Text between the cells of delimited text; found from the first lines if None.

    Raises:
        ValueError: If it is absent, empty, damaged, not of a kind that can be read, or has a header that is none.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"'{path}' does not exist; check the path.")
    rows = _open_directory(path, separator) if path.is_dir() else _open_file(path, separator)
    if not rows.names:
        raise ValueError(f"{path} has no rows; give a file with at least one.")
    unnamed = [name for name in rows.names if name.startswith((UNNAMED, INDEX))]
    if unnamed:
        rows.names = [name for name in rows.names if name not in unnamed]
    layout = None if rows.layout else of_names(rows.names)
    return arrange(rows, layout) if layout else rows


def _open_file(path: Path, separator: str | None) -> Rows:
    check_kind(path)
    ending, _ = endings(path)
    if ending in PARQUET:
        return _open_parquet(path)
    lines = first_lines(path)
    if not any(map(str.strip, lines)):
        raise ValueError(f"'{path}' is empty; give a file with a header and rows.")
    layout = of_lines(path.name.removesuffix(endings(path)[1]), lines)
    if layout is not None and layout.rows is not None:
        source = text_of(path, layout.encoding)
        content = source if isinstance(source, bytes) else content_of(path)
        check_utf8(path, content)
        return rows_of_text(path, layout, content.decode())
    if ending in JSON or (ending not in (".csv", ".tsv") and lines[0].lstrip().startswith(("{", "["))):
        return open_json_lines(path)
    rows = open_delimited(path, lines, layout, separator)
    return arrange(rows, layout) if layout else rows


def _open_parquet(path: Path) -> Rows:
    with reading(path):
        source = path if endings(path)[1] == "" else io.BytesIO(content_of(path))
        table = pl.scan_parquet(source, glob=False, hive_partitioning=False)
        schema = table.collect_schema()
    names = clean_names(path, schema.names())

    old = dict(zip(names, schema.names(), strict=True))

    def read(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        with reading(path):
            chosen = table.select(pl.col(old[name]).alias(name) for name in columns)
            return (chosen if limit is None else chosen.head(limit)).collect(engine="streaming")

    return Rows(path, names, read, numbered)


def _open_directory(path: Path, separator: str | None) -> Rows:
    """Rows of all parts in the order of their paths, and the columns that the names of folders give."""
    _refuse_table_formats(path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file in files if not any(n.startswith(("_", ".")) for n in file.relative_to(path).parts)]
    files = [file for file in files if file.stat().st_size]  # Spark writes a part without rows as an empty file
    kinds = sorted({endings(file)[0] for file in files})
    if len(kinds) != 1:
        found = f"files of several kinds ({', '.join(kind or 'no ending' for kind in kinds)})" if kinds else "no file"
        raise ValueError(f"The directory '{path}' has {found}; give a file, or a directory of parts of one table.")
    parts = [_open_file(file, separator) for file in files]
    folders = [_of_folders(file.relative_to(path)) for file in files]
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    names += [name for name in dict.fromkeys(name for values in folders for name in values) if name not in names]
    heights: list[int] = []

    def read(columns: Sequence[str], limit: int | None = None) -> pl.DataFrame:
        frames: list[pl.DataFrame] = []
        for part, values in zip(parts, folders, strict=True):
            left = None if limit is None else limit - sum(frame.height for frame in frames)
            frame = part.read([name for name in columns if name in part.names] or part.names[:1], left)
            given = [pl.lit(values[name], pl.String).alias(name) for name in columns if name in values]
            frames.append(frame.with_columns(given))
        heights[:] = [frame.height for frame in frames]
        for part, file in zip(parts, files, strict=True):
            first.nested.update({name: f"{place} of {file.relative_to(path)}" for name, place in part.nested.items()})
        try:
            return pl.concat(frames, how="diagonal_relaxed").select(columns)
        except pl.exceptions.PolarsError as error:
            raise ValueError(
                f"The parts of '{path}' have different types in one column ({error}); export them again."
            ) from None

    def place(row: int, height: int) -> str:
        ends = list(accumulate(heights))
        number = bisect_right(ends, row)
        begin = ends[number] - heights[number]
        return f"{parts[number].place(row - begin, heights[number])} of {files[number].relative_to(path)}"

    first = parts[0]
    notes = [f"{path} has {len(parts)} part{'s'[: len(parts) > 1]}.", *first.notes]
    return replace(first, path=path, names=names, read=read, place=place, notes=notes)


def _of_folders(part: Path) -> dict[str, str | None]:
    """Values of columns in the names of the folders of a part, such as `country=DE`."""
    found = dict(folder.split("=", 1) for folder in part.parts[:-1] if "=" in folder)
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, value in found.items()}


def _refuse_table_formats(path: Path) -> None:
    """Refuse Delta and Iceberg: their folders keep files of removed rows, which only their own readers leave out."""
    if (path / "_delta_log").is_dir() or list(path.glob("metadata/*.metadata.json")):
        kind = "Delta" if (path / "_delta_log").is_dir() else "Iceberg"
        raise ValueError(f"'{path}' is a {kind} table, which has removed rows in its files; write it as parquet.")
