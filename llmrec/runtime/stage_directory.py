"""Stage directories: a result is complete, with a manifest of its hashes, or it does not exist.

A stage works in `<out>.partial`, which records the identity of the run (stage, config, hashes of its inputs). Once
`manifest.json` is on disk, the directory is renamed to `<out>`. The same command run again skips a finished directory
and resumes a partial one. Another run refuses to touch either; with `overwrite` it replaces the old result once it has
finished itself. A kill, a full disk or a power cut leaves a `.partial`, never a directory that looks like a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from llmrec.configs.options import StageConfig
from llmrec.runtime import disk, processes
from llmrec.runtime.manifest import (
    MANIFEST,
    PARTIAL,
    SCHEMA_VERSION,
    JsonObject,
    content_hash,
    read_manifest,
    verify,
    write_json,
    write_manifest,
)

RUN = "run.json"
LOCK = ".lock"
SCRATCH = "scratch"
REPLACED = ".replaced"
MOVES_OPEN_FILES = os.name != "nt"  # Windows neither renames nor removes a directory with an open file


def run_stage(
    stage: str, config: StageConfig, inputs: Mapping[str, str | Path], build: Callable[[Path], JsonObject | None]
) -> Path:
    """Produce the directory `config.out` by calling `build`, unless it is there already.

    Args:
        stage: Name of the stage, recorded in the manifest.
        config: Config of the stage. Fields with `identity=False` may differ when a run is resumed.
        inputs: Name -> stage directory, file or Hub id that the result depends on.
        build: Function that writes the result into the working directory it is given, which may hold a partial result
            of the same run, and returns counts for the manifest. Under `accelerate launch` every process calls it.
            Files in `<directory>/scratch` serve its own resumption and are removed at the end.

    Returns:
        `config.out`.

    Raises:
        ValueError: If `out` holds the result of another run, something that llmrec did not write, or an input.
        OSError: If the disk is full; the message names the directory that was being written.
    """
    out, main = Path(config.out), processes.is_main()
    _check_out(out, inputs)
    partial = out.with_name(out.name + PARTIAL)
    identity = run_identity(stage, config, inputs)
    if _is_finished(out, identity, config.overwrite):
        return out
    if main:
        with disk.naming(partial):
            _claim(partial, identity, config.overwrite)
    processes.wait()
    with _locked(partial) if main else contextlib.nullcontext() as lock, disk.naming(partial):
        started = time.monotonic()
        try:
            counts = build(partial) or {}
        except Exception:
            # Refused before any work: leave no claim that the corrected run would be held to.
            if lock and all(file.name in (RUN, LOCK) for file in partial.iterdir()):
                _let_go(lock)
                shutil.rmtree(partial)
            raise
        processes.wait()
        if lock:
            _describe(partial, stage, config, inputs, identity, counts, time.monotonic() - started)
            _let_go(lock)
            _publish(out, partial)
    processes.wait()
    return out


def run_identity(stage: str, config: StageConfig, inputs: Mapping[str, str | Path]) -> JsonObject:
    """Identity of a run: its stage, its config without the paths of inputs, and the hashes of its inputs."""
    paths = set(map(str, inputs.values()))
    fields: JsonObject = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("identity", True) and field.name not in inputs:
            fields[field.name] = (
                [each for each in value if str(each) not in paths] if isinstance(value, list) else value
            )
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "config": json.loads(json.dumps(fields, default=str)),
        "inputs": {name: content_hash(source) for name, source in inputs.items()},
    }


def _check_out(out: Path, inputs: Mapping[str, str | Path]) -> None:
    """Refuse a place that no stage can write to, and one whose replacement would remove an input."""
    if out.name in ("", ".."):
        raise ValueError(f"out is '{out}'; name a directory to be made.")
    for name, source in inputs.items():
        path = Path(source).resolve()
        if path.exists() and out.resolve() in (path, *path.parents):
            raise ValueError(f"out '{out}' holds the input {name} '{source}'; choose another --out.")


def _is_finished(out: Path, identity: JsonObject, overwrite: bool) -> bool:
    """True if `out` is already the result of this run; the answer is the same in every process."""
    if not out.exists():
        return False
    if not (out / MANIFEST).is_file():
        remedy = "--overwrite does not remove it; choose" if overwrite else "choose"
        raise ValueError(f"'{out}' exists and was not written by llmrec; {remedy} another --out.")
    if overwrite:
        return False
    difference = _difference(read_manifest(out)["identity"], identity)
    if difference is None:
        verify(out)
        if processes.is_main():
            _tidy(out)
        return True
    raise ValueError(f"'{out}' is the result of another run ({difference}). Add --overwrite, or choose another --out.")


def _claim(partial: Path, identity: JsonObject, overwrite: bool) -> None:
    """Leave an empty or resumable `partial` that is bound to this run."""
    if partial.exists():
        difference = _difference(_read_run(partial, identity), identity)
        if difference is not None and not overwrite:
            raise ValueError(
                f"'{partial}' is an unfinished run of another kind ({difference}). Add --overwrite to drop it, or "
                "choose another --out."
            )
        if difference is not None:
            with _locked(partial) as lock:
                _let_go(lock)
                shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / RUN, identity)


def _read_run(partial: Path, identity: JsonObject) -> JsonObject:
    """Identity of an unfinished run; the given one if the run was killed before it wrote its own."""
    try:
        return json.loads((partial / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if not partial.is_dir() or {file.name for file in partial.iterdir()} - {RUN + ".tmp"}:
            raise ValueError(f"'{partial}' was not written by llmrec; remove it or choose another --out.") from None
        return identity


def _difference(old: JsonObject, new: JsonObject) -> str | None:
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
def _locked(partial: Path) -> Iterator[FileLock]:
    """Hold the lock of a working directory; refuse at once if another process has it."""
    lock = FileLock(partial / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another llmrec process is writing '{partial}'; wait for it or choose another --out."
        ) from None
    try:
        yield lock
    finally:
        lock.release()


def _let_go(lock: FileLock) -> None:
    """Close the file of a lock before its directory is renamed or removed, on systems where it must be closed."""
    if not MOVES_OPEN_FILES:
        lock.release()


def _describe(
    partial: Path,
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, str | Path],
    identity: JsonObject,
    counts: JsonObject,
    seconds: float,
) -> None:
    for leftover in partial.rglob("*.tmp"):  # of a file that a killed attempt was about to rename
        leftover.unlink()
    internal = {partial / RUN, partial / LOCK, partial / MANIFEST}
    found = (f for f in partial.rglob("*") if f.is_file() and f not in internal)
    files = sorted(f for f in found if partial / SCRATCH not in f.parents)
    facts = {
        "stage": stage,
        "identity": identity,
        "config": dataclasses.asdict(config),
        "inputs": {name: str(source) for name, source in inputs.items()},
        "seed": config.seed,
        "counts": counts,
        "seconds": round(seconds, 1),
    }
    write_manifest(partial, files, facts)


def _publish(out: Path, partial: Path) -> None:
    """Move the finished directory to `out`, after the directory that `overwrite` replaces is moved out of the way.

    These are two renames, so `out` is never incomplete; if the run is killed between them, the same command finds its
    partial directory again. Files that only a resumption needs are removed last: if checkpoints were removed before
    the rename, a kill could cost the whole training.
    """
    replaced = out.with_name(out.name + REPLACED)
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    partial.rename(out)
    _tidy(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _tidy(out: Path) -> None:
    """Remove the files that only an unfinished run needs; an earlier attempt may have been killed before it did."""
    (out / RUN).unlink(missing_ok=True)
    (out / LOCK).unlink(missing_ok=True)
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
