"""manifest.json: the file that makes a directory the result of a stage, and the checks of a result before its use.

The manifest is written last and has the hash of every file. Whatever reads a directory of another stage verifies it
here first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, TypeAlias

from llmrec import __version__
from llmrec.runtime import disk, processes

JsonObject: TypeAlias = dict[str, Any]  # as json.load gives it; whoever reads a value checks it

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RUN = "run.json"  # of a run that is not finished
PARTIAL = ".partial"
ERROR_LOG = ".error.log"  # after the name of a result: the traceback of a run that failed unforeseen
LARGEST_JSON = 1 << 28  # bytes; what is larger is refused before it fills the memory
READ = (".json", ".safetensors", ".parquet", ".jinja", ".model", ".bin", ".pt", ".npz")  # files that loaders look for
PAGE = ".html"  # files that people alone read: they are in no hash, and their loss stops nobody
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn", "polars")


def sha256_file(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of a value as JSON with sorted keys, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    with disk.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, default=str)
        file.write("\n")


def read_json(path: Path) -> Any:  # as json.load gives it; whoever reads a value checks it
    """Read a JSON file of llmrec, of at most LARGEST_JSON bytes.

    Raises:
        ValueError: If it is too large, is not JSON, or is nested too deeply to be read.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"{size:,} bytes are more than llmrec writes into it ({LARGEST_JSON:,})")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_manifest(path: str | Path) -> JsonObject:
    """Read the manifest of a finished stage directory.

    Raises:
        ValueError: If the directory does not exist, is unfinished, or is not a stage directory.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        if path.name.endswith(PARTIAL) and path.is_dir():
            raise ValueError(f"'{path}' is an unfinished result; run its stage again and give what it is renamed to.")
        if path.name and path.with_name(path.name + PARTIAL).is_dir():
            raise ValueError(f"'{path}' is unfinished ('{path}{PARTIAL}' exists); run its stage again to resume it.")
        problem = f"it has no {MANIFEST}" if path.is_dir() else "it is a file" if path.exists() else "it does not exist"
        raise ValueError(
            f"'{path}' is not a directory that llmrec finished: {problem}. Give the --out of the stage that makes it."
        )
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST} is not valid JSON ({error}); run its stage again.") from error
    if not _is_manifest(manifest):
        raise ValueError(f"{path / MANIFEST} is not a manifest of llmrec; run the stage that wrote '{path}' again.")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path / MANIFEST} has schema version {manifest['schema_version']}, this llmrec reads {SCHEMA_VERSION}; "
            f"run `llmrec {manifest['stage']}` again with this version, or install the one that wrote it."
        )
    return manifest


def _is_manifest(value: object) -> bool:
    """True if a JSON value has what llmrec reads of a manifest, and names no file outside its directory."""
    if not isinstance(value, dict) or not {"schema_version", "stage", "files", "identity"} <= value.keys():
        return False
    files = value["files"]
    return (
        isinstance(value["stage"], str)
        and isinstance(value["identity"], dict)
        and isinstance(files, dict)
        and all(isinstance(each, str) for each in files.values())
        and not any(Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name for name in files)
    )


def verify(path: str | Path, *stages: str) -> Path:
    """Check that a directory is the finished, unchanged result of one of the given stages.

    Args:
        path: The directory.
        stages: Names of the stages that may have written it; any stage if none is given.

    Returns:
        The path.

    Raises:
        ValueError: If it is unfinished, from another stage, a file is missing or differs from the manifest, or a file
            was added that would be read as part of the result.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if stages and manifest["stage"] not in stages:
        raise ValueError(
            f"'{path}' was written by `llmrec {manifest['stage']}`; the output of "
            f"{' or '.join(f'`llmrec {stage}`' for stage in stages)} is needed here."
        )
    for name, expected in manifest["files"].items():
        file = path / name
        try:
            is_same = file.is_file() and sha256_file(file) == expected
        except OSError as error:
            raise ValueError(
                f"{file} cannot be read ({error.strerror}); check the disk and its permissions."
            ) from error
        if not is_same:
            problem = "was changed" if file.is_file() else "is missing"
            raise ValueError(
                f"{file} {problem} since `llmrec {manifest['stage']}` wrote it; "
                f"run `llmrec {manifest['stage']} --out {path} --overwrite` with its config to repair it."
            )
    added = [f for f in path.iterdir() if f.suffix in READ and f.name not in {MANIFEST, RUN, *manifest["files"]}]
    if added:
        raise ValueError(
            f"{min(added)} was added after `llmrec {manifest['stage']}` wrote '{path}', and would be read as a part of "
            "it; move it to another place."
        )
    return path


def content_hash(source: str | Path) -> str:
    """SHA-256 that identifies an input: of the files of a directory, of a file, or of the text of a Hub id."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        return sha256_json(read_manifest(path)["files"])
    if path.is_file():
        return sha256_file(path)
    if path.is_dir():
        return sha256_json({str(f.relative_to(path)): sha256_file(f) for f in sorted(path.rglob("*")) if f.is_file()})
    return hashlib.sha256(str(source).encode()).hexdigest()


def files_of(directory: Path) -> list[Path]:
    """All files below a directory that may be read by another stage, in order; pages are for people."""
    return sorted(f for f in directory.rglob("*") if f.is_file() and f.suffix != PAGE)


def write_manifest(directory: Path, files: list[Path], facts: JsonObject) -> None:
    """Flush files to the disk, then write the manifest that makes them a result.

    Args:
        directory: Directory that becomes a result.
        files: Its files, all below it.
        facts: Further entries of the manifest, with `stage` and `identity` among them.
    """
    for file in files:
        disk.flush(file)
    for each in sorted({parent for file in files for parent in file.parents if directory in parent.parents}):
        disk.flush(each)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "files": {str(f.relative_to(directory)): sha256_file(f) for f in files},
        "processes": processes.count(),
        "versions": {"python": platform.python_version(), "llmrec": __version__, **_versions()},
    }
    write_json(directory / MANIFEST, manifest)


def adopt(directory: str | Path, stage: str) -> None:
    """Declare files that were written by other means to be the result of a stage, so that the next stage reads them.

    Args:
        directory: Holds the files that docs/formats.md lists for the stage, and nothing else.
        stage: Name of the stage that would have written them, such as `tokenize`.

    Raises:
        ValueError: If the directory is empty or absent, or is a result already.
    """
    directory = Path(directory)
    files = files_of(directory)
    if not files:
        raise ValueError(f"'{directory}' holds no files; write those of docs/formats.md for `{stage}` into it first.")
    if directory / MANIFEST in files:
        raise ValueError(
            f"'{directory}' is a result already; remove its {MANIFEST} if its files were changed on purpose."
        )
    facts = {"stage": stage, "identity": {"stage": stage}, "config": {}, "inputs": {}, "counts": {}, "seconds": None}
    write_manifest(directory, files, {**facts, "seed": None})


@functools.cache  # packages do not change under a process, and reading their metadata takes 24 ms
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
