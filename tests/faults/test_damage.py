"""Every file of every result damaged in every way, then used by each stage that reads the result.

The damage is found before the file is used, and the message says what to do; what only people read harms nothing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.cli import main
from llmrec.runtime.manifest import MANIFEST, read_manifest
from tests.faults.line import COMMANDS, Line

# Result -> a stage that reads it.
READERS = {"catalog": "embed", "views": "tokenize", "sid": "extend", "base": "sft", "ranker": "ensemble",
           "checkpoint": "evaluate", "preferred": "other eval", "eval": "compare", "etesid": "alternate"}  # fmt: skip
IN_SHORT = ("catalog", "checkpoint")
RESULTS = [pytest.param(name, marks=[] if name in IN_SHORT else [pytest.mark.slow]) for name in READERS]
ONLY_READ_BY_PEOPLE = (".html", ".md", ".txt")


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.choice((b"\0", b"\n", b"{}", path.read_bytes())))


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def make_directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def swap(path: Path, rng: random.Random) -> None:
    """The file of this name of another run, or, where all are equal, another content."""
    others = [other for other in path.parent.parent.rglob(path.name) if other.is_file()]
    others = [other for other in others if other.read_bytes() != path.read_bytes()]
    path.write_bytes(rng.choice(others).read_bytes() if others else path.read_bytes() + b" ")


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, append, empty, remove, make_directory, swap)


def damaged(line: Line, name: str, tmp_path: Path) -> Path:
    """Links to all results, and a copy of one that may be damaged."""
    for each, _ in COMMANDS.values():
        if each != name and (line.root / each).is_dir():
            (tmp_path / each).symlink_to(line.root / each)
    return Path(shutil.copytree(line.root / name, tmp_path / name))


def use(reader: str, tmp_path: Path) -> int:
    """Exit status of a stage that reads the results in a directory."""
    command = COMMANDS[reader][1].replace("@compared.html", "@page.html").replace("@", f"{tmp_path}/")
    out = [] if reader == "compare" else ["--out", str(tmp_path / "used")]
    return main([*command.split(), *out])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", RESULTS)
def test_damage_is_found_before_the_file_is_used(name, damage, line, tmp_path, capsys):
    """Of each file of a result in turn."""
    copy, rng = damaged(line, name, tmp_path), random.Random(f"{name} {damage.__name__}")
    for file in sorted(read_manifest(copy)["files"]):
        whole = (copy / file).read_bytes()
        damage(copy / file, rng)
        capsys.readouterr()
        assert use(READERS[name], tmp_path) == 2, file
        said = capsys.readouterr().err
        assert str(copy / file) in said and "run `llmrec" in said and "--overwrite" in said, said
        assert not (tmp_path / "used").exists() and not (tmp_path / "page.html").exists()
        shutil.rmtree(copy / file, ignore_errors=True)
        (copy / file).write_bytes(whole)


@pytest.mark.parametrize("name", RESULTS)
def test_a_damaged_manifest_is_refused(name, line, tmp_path, capsys):
    copy, rng = damaged(line, name, tmp_path), random.Random(name)
    whole = (copy / MANIFEST).read_bytes()
    for damage in (cut, empty, remove, make_directory):
        damage(copy / MANIFEST, rng)
        capsys.readouterr()
        status, said = use(READERS[name], tmp_path), capsys.readouterr().err
        if status == 0:  # a directory without a manifest is one that other tools wrote; its files are checked
            assert damage in (remove, make_directory) and name in ("views", "sid", "base", "checkpoint", "preferred")
            shutil.rmtree(tmp_path / "used")
        else:
            assert status == 2 and MANIFEST in said and "Traceback" not in said, said
        if (copy / MANIFEST).is_dir():
            (copy / MANIFEST).rmdir()
        (copy / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("name", RESULTS)
def test_what_only_people_read_may_be_lost(name, line, tmp_path):
    copy, rng = damaged(line, name, tmp_path), random.Random(name)
    bound = read_manifest(copy)["files"]
    pages = [path for path in copy.iterdir() if path.suffix in ONLY_READ_BY_PEOPLE and path.name not in bound]
    for page, damage in zip(pages, (remove, cut, empty), strict=False):
        damage(page, rng)
    assert use(READERS[name], tmp_path) == 0
