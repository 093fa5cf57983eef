"""Stage directories: a result is whole, hash-bound and named by its manifest, or it is not there.

A stage works in `<out>.partial`, which remembers the identity of the run (stage, config, hashes of its inputs), and
renames it to `<out>` once `manifest.json` is on disk. The same run again skips a finished directory and resumes a
partial one; another run refuses to touch either. A kill, a full disk or a power cut leaves a `.partial`, never a
directory that could be taken for a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmrec import processes

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RUN = "run.json"
LOCK = ".lock"
SCRATCH = "scratch"
PACKAGES = ("llmrec", "torch", "transformers", "peft", "trl", "accelerate", "numpy", "scikit-learn", "polars")


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Manifest of a finished stage directory.

    Raises:
        ValueError: If the directory does not exist, is unfinished, or is not a stage directory.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        if path.with_name(path.name + ".partial").is_dir():
            raise ValueError(f"'{path}' is unfinished ('{path}.partial' exists); run its stage again to resume it.")
        raise ValueError(f"'{path}' is not a directory that llmrec finished: it has no {MANIFEST}.")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST} is not valid JSON ({error}); run its stage again.") from error
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path / MANIFEST} has schema version {manifest.get('schema_version')}, this llmrec reads "
            f"{SCHEMA_VERSION}; run `llmrec {manifest.get('stage', '<stage>')}` again."
        )
    return manifest


def verify(path: str | Path, *stages: str) -> Path:
    """Check that a directory is the finished, unchanged result of one of the given stages.

    Returns:
        The path.

    Raises:
        ValueError: If it is unfinished, from another stage, or a file is missing or differs from the manifest.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if stages and manifest["stage"] not in stages:
        raise ValueError(
            f"'{path}' was written by `llmrec {manifest['stage']}`; the output of `llmrec {' or '.join(stages)}` "
            "is needed here."
        )
    for name, expected in manifest["files"].items():
        file = path / name
        problem = "is missing" if not file.is_file() else "was changed" if sha256_file(file) != expected else None
        if problem:
            raise ValueError(
                f"{file} {problem} since `llmrec {manifest['stage']}` wrote it; "
                f"run `llmrec {manifest['stage']} --out {path} --overwrite` with its config to repair it."
            )
    return path


def content_hash(source: str | Path) -> str:
    """Hash that names an input: content of a stage directory or file, or the text of a Hub id."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        return sha256_json(read_manifest(path)["files"])
    if path.is_file():
        return sha256_file(path)
    if path.is_dir():
        return sha256_json({str(f.relative_to(path)): sha256_file(f) for f in sorted(path.rglob("*")) if f.is_file()})
    return hashlib.sha256(str(source).encode()).hexdigest()


def run_stage(
    stage: str, config: Any, inputs: dict[str, str | Path], build: Callable[[Path], dict[str, Any] | None]
) -> Path:
    """Produce `config.out` by `build`, at most once.

    Args:
        stage: Name of the stage, recorded in the manifest.
        config: Stage config (a dataclass with `out` and `overwrite`); fields marked as not part of a run's identity
            may differ between a run and its resumption.
        inputs: Name -> stage directory, file or Hub id that the result depends on.
        build: Called with the working directory (it may hold a partial result of the same run); returns counts for
            the manifest. Under `accelerate launch` every process calls it. What it leaves in `<dir>/scratch` is for
            its own resumption and removed at the end.

    Returns:
        `config.out`.

    Raises:
        ValueError: If `out` holds the result of another run, or something that llmrec did not write.
    """
    out, main = Path(config.out), processes.is_main()
    partial = out.with_name(out.name + ".partial")
    identity = run_identity(stage, config, inputs)
    if main:
        finished = _claim(out, partial, identity, config.overwrite)
    processes.wait()
    if not main:
        finished = (out / MANIFEST).is_file()
    if finished:
        return out
    with _locked(partial) if main else contextlib.nullcontext():
        started = time.monotonic()
        try:
            counts = build(partial) or {}
        except ValueError:
            # Input refused before any work: leave no claim that the corrected run would be held to.
            if main and all(file.name in (RUN, LOCK) for file in partial.iterdir()):
                shutil.rmtree(partial)
            raise
        processes.wait()
        if main:
            shutil.rmtree(partial / SCRATCH, ignore_errors=True)
            _publish(out, partial, stage, config, inputs, identity, counts, time.monotonic() - started)
    processes.wait()
    return out


def run_identity(stage: str, config: Any, inputs: dict[str, str | Path]) -> dict[str, Any]:
    """What makes two runs the same run: stage, resolved config without paths of inputs, content of inputs."""
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata.get("identity", True) and field.name not in inputs
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "config": json.loads(json.dumps(fields, default=str)),
        "inputs": {name: content_hash(source) for name, source in inputs.items()},
    }


def _claim(out: Path, partial: Path, identity: dict[str, Any], overwrite: bool) -> bool:
    """Decide whether `out` is already this run's result; otherwise leave an empty or resumable `partial`."""
    if overwrite:
        for path in (out, partial):
            if path.exists() and not ((path / MANIFEST).is_file() or (path / RUN).is_file()):
                raise ValueError(
                    f"'{path}' was not written by llmrec; --overwrite does not remove it. Choose another --out."
                )
            shutil.rmtree(path, ignore_errors=True)
    if out.exists():
        if not out.is_dir() or not (out / MANIFEST).is_file():
            raise ValueError(f"'{out}' exists and was not written by llmrec; choose another --out.")
        difference = _difference(read_manifest(out)["identity"], identity)
        if difference is None:
            verify(out)
            return True
        raise ValueError(
            f"'{out}' is the result of another run ({difference}). Add --overwrite, or choose another --out."
        )
    if partial.exists():
        try:
            found = json.loads((partial / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if any(partial.iterdir()):
                raise ValueError(f"'{partial}' was not written by llmrec; remove it or choose another --out.") from None
            found = identity
        difference = _difference(found, identity)
        if difference is not None:
            raise ValueError(
                f"'{partial}' is an unfinished run of another kind ({difference}). Add --overwrite to drop it, or "
                "choose another --out."
            )
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / RUN, identity)
    return False


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    if old == new:
        return None
    if old.get("stage") != new["stage"]:
        return f"stage {old.get('stage')}, not {new['stage']}"
    for part in ("config", "inputs"):
        for key in sorted({*old.get(part, {}), *new[part]}):
            before, after = old.get(part, {}).get(key), new[part].get(key)
            if before != after:
                return f"{key} was {before!r}, now {after!r}" if part == "config" else f"its input '{key}' has changed"
    return "written by another version of llmrec"


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    with (partial / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another llmrec process is writing '{partial}'; wait for it or choose another --out."
            ) from None
        yield


def _publish(
    out: Path,
    partial: Path,
    stage: str,
    config: Any,
    inputs: dict[str, str | Path],
    identity: dict[str, Any],
    counts: dict[str, Any],
    seconds: float,
) -> None:
    internal = {partial / RUN, partial / LOCK, partial / MANIFEST}
    files = sorted(f for f in partial.rglob("*") if f.is_file() and f not in internal)
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "files": {str(f.relative_to(partial)): sha256_file(f) for f in files},
        "identity": identity,
        "config": dataclasses.asdict(config),
        "inputs": {name: str(source) for name, source in inputs.items()},
        "seed": getattr(config, "seed", None),
        "counts": counts,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    write_json(partial / MANIFEST, manifest)
    partial.rename(out)
    (out / RUN).unlink()
    (out / LOCK).unlink()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
