"""Stage directories: made once, resumed, refused, replaced, locked, and whole or absent at every moment."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from llmrec.configs.options import Config, StageConfig, option
from llmrec.runtime import disk, manifest, stage_directory
from llmrec.runtime.manifest import MANIFEST, content_hash, read_manifest, verify
from llmrec.runtime.stage_directory import LOCK, RUN, SCRATCH, run_identity, run_stage


@dataclasses.dataclass(kw_only=True)
class Options(StageConfig, Config):
    source: str = option("An input.", "")
    names: list[str] = option("Part of the identity, unless they are inputs.", [])
    size: int = option("Part of the identity.", 1)
    device: str = option("Not part of it.", "auto", identity=False)


class Stage:
    """A stage that writes its size into a file, counts its runs, and can be made to fail in the middle."""

    def __init__(self, out: Path, source: Path):
        self.out, self.source, self.runs, self.error = out, source, 0, None
        self.partial = out.with_name(out.name + ".partial")

    def run(self, **options) -> Path:
        config = Options(out=str(self.out), source=str(self.source), **options)

        def build(workdir: Path) -> dict[str, int]:
            assert workdir == self.partial
            self.runs += 1
            (workdir / "a.txt").write_text(f"size {config.size}")
            (workdir / SCRATCH).mkdir(exist_ok=True)
            (workdir / SCRATCH / "half").touch()
            if self.error:
                raise self.error
            (workdir / "b").mkdir(exist_ok=True)
            (workdir / "b" / "c.txt").write_text("c")
            return {"runs": self.runs}

        return run_stage("embed", config, {"source": config.source}, build)

    @property
    def content(self) -> str:
        return (self.out / "a.txt").read_text()


@pytest.fixture
def stage(tmp_path) -> Stage:
    (tmp_path / "input.csv").write_text("a,b\n")
    return Stage(tmp_path / "out", tmp_path / "input.csv")


def test_a_result_is_its_files_and_a_manifest(stage):
    assert stage.run(seed=3) == stage.out
    assert {str(p.relative_to(stage.out)) for p in stage.out.rglob("*") if p.is_file()} == {
        "a.txt", "b/c.txt", MANIFEST,
    }  # fmt: skip
    manifest = read_manifest(stage.out)
    assert manifest["files"].keys() == {"a.txt", "b/c.txt"}
    assert manifest["files"]["b/c.txt"] == "2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6"  # of "c"
    assert (manifest["stage"], manifest["seed"], manifest["counts"]) == ("embed", 3, {"runs": 1})
    assert manifest["config"] == dataclasses.asdict(Options(out=str(stage.out), source=str(stage.source), seed=3))
    assert manifest["versions"].keys() >= {"python", "llmrec", "torch"}
    assert not stage.partial.exists()


def test_the_same_run_is_skipped_wherever_it_computes(stage):
    stage.run()
    stage.run(device="cpu")
    assert stage.runs == 1


def test_inputs_in_a_list_may_move_and_other_entries_may_not_change(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).write_text("the same")
    here, there, other = (
        run_identity("embed", Options(out="o", names=[str(tmp_path / place), name]), {"n": tmp_path / place})
        for place, name in (("here", "a"), ("there", "a"), ("here", "b"))
    )
    assert here == there != other
    assert here["config"]["names"] == ["a"]


def test_an_interrupted_run_is_resumed_and_leaves_no_result(stage):
    stage.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert not stage.out.exists() and (stage.partial / "a.txt").exists()
    with pytest.raises(ValueError, match=r"out' is unfinished .*run its stage again"):
        read_manifest(stage.out)
    stage.error = None
    stage.run(device="cpu")
    assert verify(stage.out, "embed") == stage.out and not stage.partial.exists()


def test_another_run_is_refused_with_what_differs(stage):
    stage.run()
    with pytest.raises(ValueError, match=r"another run \(size was 1, now 2\). Add --overwrite"):
        stage.run(size=2)
    stage.source.write_text("a,c\n")
    with pytest.raises(ValueError, match=r"its input 'source' has changed"):
        stage.run()
    assert stage.runs == 1 and stage.content == "size 1"


def test_an_unfinished_run_of_another_kind_is_dropped_by_overwrite_alone(stage):
    stage.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    stage.error = None
    with pytest.raises(ValueError, match=r"unfinished run of another kind \(size was 1, now 2\)"):
        stage.run(size=2)
    stage.run(size=2, overwrite=True)
    assert stage.content == "size 2"


def test_overwrite_keeps_the_old_result_until_the_new_one_is_whole(stage):
    stage.run()
    stage.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.run(size=2, overwrite=True)
    assert stage.content == "size 1" and verify(stage.out)
    stage.error = None
    stage.run(size=2, overwrite=True)
    assert stage.content == "size 2" and verify(stage.out)
    assert {path.name for path in stage.out.parent.iterdir()} == {"input.csv", "out"}


@pytest.mark.parametrize("step", [1, 2])
def test_killed_while_replacing_the_same_command_finishes(stage, monkeypatch, step):
    """Two renames put the new result in place of the old one; `out` is whole or absent after each."""
    stage.run()
    renames, rename = [], Path.rename

    def dying(self, target):
        renames.append(self)
        rename(self, target)
        if len(renames) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        stage.run(size=2, overwrite=True)
    monkeypatch.undo()
    assert not stage.out.exists() or (verify(stage.out) and stage.content == "size 2")
    stage.run(size=2, overwrite=step == 1)
    assert stage.content == "size 2" and verify(stage.out)


def test_overwrite_repairs_a_damaged_result(stage):
    stage.run()
    (stage.out / "a.txt").write_text("size 9")
    with pytest.raises(ValueError, match=r"a.txt was changed since `llmrec embed` wrote it; .*--overwrite"):
        stage.run()
    stage.run(overwrite=True)
    assert stage.content == "size 1" and verify(stage.out)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_llmrec_did_not_write_is_never_touched(stage, overwrite):
    stage.out.mkdir()
    (stage.out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by llmrec"):
        stage.run(overwrite=overwrite)
    stage.out.rename(stage.partial)
    with pytest.raises(ValueError, match=r"out.partial' was not written by llmrec"):
        stage.run(overwrite=overwrite)
    assert (stage.partial / "thesis.tex").read_text() == "years of work" and stage.runs == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_replaced(stage, overwrite):
    stage.run()
    inside = Stage(stage.out, stage.out / "a.txt")
    with pytest.raises(ValueError, match=r"out' holds the input source"):
        inside.run(overwrite=overwrite)
    assert inside.runs == 0 and verify(stage.out)


@pytest.mark.parametrize("options", [{}, {"overwrite": True, "size": 2}])
def test_a_directory_that_another_process_writes_is_left_to_it(stage, options):
    stage.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    other = "import filelock, sys; a = filelock.FileLock(sys.argv[1]); a.acquire(); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", other, stage.partial / LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match="Another llmrec process is writing"):
            stage.run(**options)
    assert (stage.partial / "a.txt").exists() and stage.runs == 1


@pytest.mark.parametrize("moves_open_files", [True, False])
def test_the_lock_is_held_while_the_stage_works_and_let_go_before_the_directory_moves(
    stage, monkeypatch, moves_open_files
):
    """On Windows, which does not move open files; elsewhere it is held until the result is in its place."""
    monkeypatch.setattr(stage_directory, "MOVES_OPEN_FILES", moves_open_files)
    held, publish = [], stage_directory._publish

    def is_held(directory: Path) -> bool:
        lock = FileLock(directory / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
        return False

    def published(out: Path, partial: Path) -> None:
        held.append(is_held(partial))
        publish(out, partial)

    monkeypatch.setattr(stage_directory, "_publish", published)
    run_stage("embed", Options(out=str(stage.out)), {}, lambda directory: held.append(is_held(directory)))
    assert held == [True, moves_open_files] and verify(stage.out)
    run_stage("embed", Options(out=str(stage.out), size=2, overwrite=True), {}, lambda directory: None)
    assert not (stage.out / LOCK).exists()


def test_a_system_without_fcntl_imports_it():
    """Windows, that is."""
    code = "import sys; sys.modules['fcntl'] = None; import llmrec.cli, llmrec.runtime.stage_directory"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_refused_input_leaves_no_claim(stage):
    def refuse(workdir: Path) -> None:
        raise ValueError("no such column")

    config = Options(out=str(stage.out))
    with pytest.raises(ValueError, match="no such column"):
        run_stage("embed", config, {}, refuse)
    assert not stage.partial.exists() and not stage.out.exists()


def test_killed_before_its_identity_was_written_a_run_starts_again(stage):
    stage.partial.mkdir()
    (stage.partial / (RUN + ".tmp")).write_text('{"sta')
    stage.run()
    assert read_manifest(stage.out)["files"].keys() == {"a.txt", "b/c.txt"}


@pytest.mark.parametrize(
    "stray", [".tmpXy12Zq", "model.safetensors.tmp", "model-00002-of-00002.safetensors", "b/.tmp9"]
)
def test_what_a_killed_attempt_left_is_not_published(stage, stray):
    """safetensors writes to `.tmpXXXXXX`; a kill leaves it, and it would be a second copy of the weights."""
    stage.run()
    expected = content_hash(stage.out)
    shutil.rmtree(stage.out)
    stage.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    (stage.partial / stray).parent.mkdir(exist_ok=True)
    (stage.partial / stray).write_text("half of the weights")
    stage.error = None
    stage.run()
    assert content_hash(stage.out) == expected and not (stage.out / stray).exists()


def test_only_files_that_are_reused_outlive_a_killed_attempt(stage):
    seen = []

    def build(workdir: Path) -> None:
        seen.append(sorted(path.name for path in workdir.iterdir() if path.name not in (RUN, LOCK)))
        (workdir / SCRATCH).mkdir(exist_ok=True)
        for name in ("a", "b"):
            (workdir / name).touch()
        if len(seen) == 1:
            raise KeyboardInterrupt

    config = Options(out=str(stage.out))
    with pytest.raises(KeyboardInterrupt):
        run_stage("embed", config, {}, build, reused=["a"])
    run_stage("embed", config, {}, build, reused=["a"])
    assert seen == [[], ["a", SCRATCH]]


class Panic(BaseException):
    """As pyo3 declares the panics of polars."""


def test_a_panic_before_any_work_leaves_no_claim(stage):
    def panic(workdir: Path) -> None:
        raise Panic("date out of range")

    with pytest.raises(Panic):
        run_stage("embed", Options(out=str(stage.out)), {}, panic)
    assert not stage.partial.exists()


def test_names_are_flushed_after_files_and_after_the_rename(stage, monkeypatch):
    """A power cut can otherwise undo the rename, or leave a name without content."""
    events, fsync, rename = [], os.fsync, Path.rename

    def flushed(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        events.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    stage.run()
    *before, last, parent = events
    assert (last, parent) == ("renamed", str(stage.out.parent))
    order = [before.index(str(stage.partial / name)) for name in ("a.txt", "b/c.txt", "b", MANIFEST + ".tmp")]
    assert order == sorted(order) and before[-1] == str(stage.partial)


def test_a_run_that_another_process_finishes_first_is_not_made_again(stage, monkeypatch):
    """Both start; the second gets the lock when the first has published and let go."""
    other, locked = Stage(stage.out, stage.source), stage_directory._locked

    def late(partial: Path):
        monkeypatch.undo()
        other.run()
        return locked(partial)

    monkeypatch.setattr(stage_directory, "_locked", late)
    stage.run()
    assert (other.runs, stage.runs) == (1, 0)
    assert verify(stage.out) and not stage.partial.exists()


def test_a_lock_that_moved_away_with_its_directory_is_not_held(stage, monkeypatch):
    """The first process publishes, and takes the lock file away, between the second's look and its lock."""
    acquire, calls = FileLock.acquire, []

    def late(self, *arguments, **options):
        calls.append(self)
        if len(calls) == 1:
            stage.partial.rename(stage.out.with_name("published"))
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", late)
    stage.run()
    assert verify(stage.out) and len(calls) >= 2


def test_killed_while_the_manifest_was_written_a_run_finishes(stage, monkeypatch):
    write = manifest.write_json

    def dying(path, value):
        if path.name == MANIFEST:
            path.with_name(path.name + ".tmp").write_text('{"sch')
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(manifest, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert not stage.out.exists()
    monkeypatch.undo()
    stage.run()
    assert read_manifest(stage.out)["files"].keys() == {"a.txt", "b/c.txt"} and verify(stage.out)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        Exception("parquet: File out of specification: underlying IO error: No space left on device"),  # polars
    ],
)
def test_a_full_disk_is_named_and_the_run_resumed(stage, error):
    stage.error = error
    with pytest.raises(OSError, match=r"out.partial") as caught:
        stage.run()
    assert caught.value.errno in disk.FULL and caught.value.__cause__ is error
    assert not stage.out.exists()
    stage.error = None
    assert verify(stage.run())


@pytest.mark.parametrize(
    ("error", "number", "place"),
    [
        # As the libraries word them: each was seen with system calls that a seccomp filter made fail.
        (OSError(errno.EIO, "Input/output error"), errno.EIO, "out.partial"),
        (PermissionError(errno.EACCES, "Error writing bytes to file. Detail: [errno 13] Permission denied"),
         errno.EACCES, "out.partial"),
        (OSError(errno.EMFILE, "Failed to open local file '/d/q.parquet'. Detail: [errno 24] Too many open files"),
         errno.EMFILE, "/d/q.parquet"),  # pyarrow
        (OSError("Read-only file system (os error 30): /d/p.parquet"), errno.EROFS, "/d/p.parquet"),  # polars
        (Exception("parquet: File out of specification: underlying IO error: Input/output error (os error 5)"),
         errno.EIO, "out.partial"),
        (Exception('Error while serializing: I/O error: Permission denied (os error 13) at path "/d/.tmpHQErgL"'),
         errno.EACCES, "/d"),  # safetensors
        (RuntimeError("[enforce fail at inline_container.cc:747] . open file failed with strerror: Permission denied"),
         errno.EACCES, "out.partial"),  # torch
        (RuntimeError("basic_ios::clear: iostream error"), errno.EIO, "out.partial"),  # torch, which names no cause
    ],
)  # fmt: skip
def test_a_failed_write_names_the_file_and_the_true_cause(stage, error, number, place):
    stage.error = error
    with pytest.raises(OSError) as caught:
        stage.run()
    assert caught.value.errno == number and str(caught.value.filename).endswith(place)
    stage.error = None
    assert verify(stage.run())


def test_other_errors_are_not_taken_for_failed_writes(stage):
    named = OSError(errno.EACCES, "Permission denied", "/d/log.csv")
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    ours = ValueError("'base' cannot be loaded (Permission denied (os error 13)). Give another model.")
    for error in (RuntimeError("shapes do not match"), named, refused, ours, KeyError("x")):
        stage.error = error
        with pytest.raises(type(error)) as caught:
            stage.run()
        assert caught.value is error


def test_verify_names_the_file_the_stage_and_the_repair(stage, tmp_path):
    stage.run()
    with pytest.raises(ValueError, match="written by `llmrec embed`; the output of `llmrec prepare` or `llmrec sft`"):
        verify(stage.out, "prepare", "sft")
    (stage.out / "b" / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"c.txt is missing since `llmrec embed` .*`llmrec embed --out .*--overwrite`"):
        verify(stage.out)
    for absent, problem in ((tmp_path / "nowhere", "does not exist"), (stage.source, "is a file")):
        with pytest.raises(ValueError, match=problem):
            verify(absent)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"schema_version": 1, "stage": "embed"}'])
def test_a_garbled_manifest_is_no_result(stage, content):
    stage.run()
    (stage.out / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=rf"{MANIFEST} is not"):
        verify(stage.out)


@pytest.mark.parametrize("name", ["../b.txt", "/etc/hostname", "b/../../input.csv", "a\0.txt"])
def test_a_manifest_names_no_file_outside_its_directory(stage, name):
    stage.run()
    found = json.loads((stage.out / MANIFEST).read_text())
    found["files"][name] = "0" * 64
    (stage.out / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"{MANIFEST} is not a manifest of llmrec; run the stage"):
        verify(stage.out)


def test_a_manifest_that_is_nested_without_end_is_refused(stage):
    stage.run()
    (stage.out / MANIFEST).write_text("[" * 200_000)
    with pytest.raises(ValueError, match=rf"{MANIFEST} is not valid JSON \(it is nested too deeply\)"):
        verify(stage.out)


@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.jinja", "model-00002.safetensors", "b.parquet"])
def test_a_file_that_was_added_and_would_be_read_is_refused(stage, name):
    stage.run()
    (stage.out / "notes.txt").write_text("a person's")
    assert verify(stage.out)
    (stage.out / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"{name} was added after `llmrec embed` wrote .*; move it"):
        verify(stage.out)


def test_content_hash_is_of_the_content(stage, tmp_path):
    stage.run()
    moved = tmp_path / "moved"
    shutil.copytree(stage.out, moved)
    assert content_hash(moved) == content_hash(stage.out)
    manifest = json.loads((moved / MANIFEST).read_text())
    (moved / MANIFEST).write_text(json.dumps(manifest | {"seconds": 99}))
    assert content_hash(moved) == content_hash(stage.out)
    stage.run(size=2, overwrite=True)
    assert content_hash(moved) != content_hash(stage.out)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "x").write_text("1")
    before = content_hash(plain)
    (plain / "x").rename(plain / "y")
    assert content_hash(plain) != before
    assert content_hash("org/model") == content_hash("org/model") != content_hash("org/other")


def test_other_processes_of_a_launch_build_but_write_no_result(stage, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stage.partial.mkdir()  # what the first process claims before any other goes on
    assert stage.run() == stage.out
    assert stage.runs == 1
    assert not stage.out.exists() and not (stage.partial / RUN).exists() and not (stage.partial / LOCK).exists()


def test_other_processes_of_a_launch_skip_and_refuse_like_the_first(stage, monkeypatch):
    stage.run()
    monkeypatch.setenv("RANK", "1")
    stage.run()
    with pytest.raises(ValueError, match="another run"):
        stage.run(size=2)
    assert stage.runs == 1


def test_files_of_other_means_are_adopted_as_a_result_and_bound_like_one(tmp_path, sid_table):
    sid_table.save(tmp_path)
    manifest.adopt(tmp_path, "tokenize")
    assert verify(tmp_path, "tokenize") == tmp_path
    with pytest.raises(ValueError, match="is a result already"):
        manifest.adopt(tmp_path, "tokenize")
    (tmp_path / "sid_table.parquet").write_bytes(b"changed")
    with pytest.raises(ValueError, match="was changed since"):
        verify(tmp_path)


def test_an_empty_directory_is_not_adopted(tmp_path):
    with pytest.raises(ValueError, match="holds no files"):
        manifest.adopt(tmp_path, "tokenize")
