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
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from llmrec.configs.options import StageConfig
from llmrec.runtime import disk, processes
from llmrec.runtime.manifest import (
    ERROR_LOG,
    MANIFEST,
    PARTIAL,
    RUN,
    SCHEMA_VERSION,
    JsonObject,
    content_hash,
    files_of,
    read_json,
    read_manifest,
    verify,
    write_json,
    write_manifest,
)

LOCK = ".lock"
SCRATCH = "scratch"
REPLACED = ".replaced"
MOVES_OPEN_FILES = os.name != "nt"  # Windows neither renames nor removes a directory with an open file


def run_stage(
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, str | Path],
    build: Callable[[Path], JsonObject | None],
    reused: Collection[str] = (),
) -> Path:
    """Produce the directory `config.out` by calling `build`, unless it is there already.

    Args:
        stage: Name of the stage, recorded in the manifest.
        config: Config of the stage. Fields with `identity=False` may differ when a run is resumed.
        inputs: Name -> stage directory, file or Hub id that the result depends on.
        build: Function that writes the result into the working directory it is given, which may hold a partial result
            of the same run, and returns counts for the manifest. Under `accelerate launch` every process calls it.
            Files in `<directory>/scratch` serve its own resumption and are removed at the end.
        reused: Names of the files that `build` writes whole and does not make again when it resumes. All others outside
            `scratch`, which a killed attempt may have left in any state, are removed before `build`.

    Returns:
        `config.out`.

    Raises:
        ValueError: If `out` holds the result of another run, something that llmrec did not write, or an input.
        OSError: If a file cannot be written; the message names it, or the directory, and the cause.
    """
    out, main = Path(config.out), processes.is_main()
    _check_out(out, inputs)
    partial = out.with_name(out.name + PARTIAL)
    identity = run_identity(stage, config, inputs)
    if _is_finished(out, identity, config.overwrite):
        return out
    with _claimed(partial, identity, config.overwrite, reused) if main else contextlib.nullcontext() as lock:
        processes.wait()
        # Another process may have finished the same run since; the processes of one launch must go the same way.
        if lock and processes.count() == 1 and _is_finished(out, identity, config.overwrite):
            _abandon(partial, lock)
            return out
        with disk.naming(partial):
            started = time.monotonic()
            try:
                counts = build(partial) or {}
            except BaseException:  # a panic of polars is no Exception
                if lock:
                    _abandon(partial, lock)
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


@contextlib.contextmanager
def _claimed(partial: Path, identity: JsonObject, overwrite: bool, reused: Collection[str]) -> Iterator[FileLock]:
    """Hold the lock of a working directory that is empty or resumable and bound to this run."""
    with disk.naming(partial):
        _check_ours(partial)
        lock = _locked(partial)
    try:
        with disk.naming(partial):
            difference = _difference(_read_run(partial, identity), identity)
            if difference is not None and not overwrite:
                _let_go(lock)
                (partial / LOCK).unlink()
                raise ValueError(
                    f"'{partial}' is an unfinished run of another kind ({difference}). Add --overwrite to drop it, or "
                    "choose another --out."
                )
            _sweep(partial, () if difference is not None else (SCRATCH, *reused))
            write_json(partial / RUN, identity)
        yield lock
    finally:
        lock.release()


def _locked(partial: Path) -> FileLock:
    """Lock of a working directory, which is made if it is absent; refuse at once if another process has it."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        path = partial / LOCK
        try:
            path.touch()
            before, lock = path.stat(), FileLock(path, timeout=0)
            lock.acquire()
        except FileNotFoundError:  # the process that had the directory has just published or dropped it
            continue
        except Timeout:
            raise ValueError(
                f"Another llmrec process is writing '{partial}'; wait for it or choose another --out."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(before, path.stat()):
                return lock
        lock.release()


def _check_ours(partial: Path) -> None:
    """Refuse a directory that a run of llmrec did not leave, before anything is written into it."""
    early = {LOCK, RUN + ".tmp"}  # a run writes these before its identity
    if not partial.exists() or (partial.is_dir() and (partial / RUN).is_file()):
        return
    if not partial.is_dir() or {file.name for file in partial.iterdir()} - early:
        raise ValueError(f"'{partial}' was not written by llmrec; remove it or choose another --out.")


def _read_run(partial: Path, identity: JsonObject) -> JsonObject:
    """Identity of an unfinished run; the given one if the run was killed before it wrote its own."""
    if not (partial / RUN).is_file():
        return identity
    try:
        found = read_json(partial / RUN)
    except ValueError as error:
        raise ValueError(
            f"{partial / RUN} cannot be read ({error}); remove '{partial}' or choose another --out."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{partial / RUN} is no identity of a run; remove '{partial}' or choose another --out.")
    return found


def _sweep(partial: Path, kept: Collection[str]) -> None:
    """Remove what an earlier attempt left, except its identity, the lock and the entries of these names."""
    for path in partial.iterdir():
        if path.name in (RUN, LOCK, *kept):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _abandon(partial: Path, lock: FileLock) -> None:
    """Remove a working directory without any work, so that a corrected run is not held to its claim."""
    if all(path.name in (RUN, LOCK) for path in partial.iterdir()):
        _let_go(lock)
        shutil.rmtree(partial)


def _difference(old: JsonObject, new: JsonObject) -> str | None:
    if old == new:
        return None
    if old.get("stage") != new["stage"]:
        return f"stage {old.get('stage')}, not {new['stage']}"
    for part in ("config", "inputs"):
        earlier = old.get(part)
        if not isinstance(earlier, dict):
            continue
        for key in sorted({*earlier, *new[part]}):
            before, after = earlier.get(key), new[part].get(key)
            if before != after:
                return f"{key} was {before!r}, now {after!r}" if part == "config" else f"its input '{key}' has changed"
    return "written by another version of llmrec"


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
    internal = {partial / RUN, partial / LOCK, partial / MANIFEST}
    files = [f for f in files_of(partial) if f not in internal and partial / SCRATCH not in f.parents]
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
    disk.flush(out.absolute().parent)
    _tidy(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _tidy(out: Path) -> None:
    """Remove the files that only an unfinished run needs; an earlier attempt may have been killed before it did."""
    out.with_name(out.name + ERROR_LOG).unlink(missing_ok=True)
    (out / RUN).unlink(missing_ok=True)
    (out / LOCK).unlink(missing_ok=True)
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
