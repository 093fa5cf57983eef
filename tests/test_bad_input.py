"""Bad input of every kind through the command line: one message with the place and the remedy, and nothing written."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch

from llmrec.cli import main
from llmrec.runtime.manifest import MANIFEST
from tests.support.bad_input import (
    GIVEN,
    Case,
    configs,
    directories,
    grpo,
    items,
    models,
    preferences,
    rankers,
    raw_files,
)

CORPUS = {
    f"{module.__name__.rsplit('.', 1)[-1]}: {name}": case
    for module in (configs, raw_files, directories, items, models, preferences, rankers, grpo)
    for name, case in module.CASES.items()
}
LONGEST_S = 10  # a refusal takes milliseconds; a stage that starts its work first, or asks the network, takes longer


def run(command: str, paths: dict[str, Path]) -> int:
    try:
        return main([resolve(part, paths) for part in shlex.split(command)])
    except SystemExit as stop:  # argparse
        return stop.code


def resolve(part: str, paths: dict[str, Path]) -> str:
    """`@name` as the path of that name; a name that nothing has is a new path beside the others."""
    return str(paths.get(part[1:], paths["tmp"] / part[1:])) if part.startswith("@") else part


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Path]:
    """One small artefact of each stage, another catalogue of the same size, and raw files."""
    root = tmp_path_factory.mktemp("good")
    paths = {"tmp": root}
    simulated = "prepare --dataset simulated:60x30 --k-core 3 --out "
    built = {name: f"{stage} {GIVEN[stage]} --out @{name}" for name, stage in (
        ("views", "embed"), ("sid", "tokenize"), ("base", "extend"), ("checkpoint", "sft"),
        ("ranker", "teach"))}  # fmt: skip
    built["ranker"] += " --ranker markov"
    for name, command in {"catalog": simulated + "@catalog", "other": simulated + "@other --seed 1", **built}.items():
        paths[name] = root / name
        assert run(command, paths) == 0
    paths["log.csv"], paths["items.csv"] = root / "log.csv", root / "items.csv"
    paths["log.csv"].write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n")
    paths["items.csv"].write_text("item_id,title\na,Apple\nb,Pear\nc,Plum\n")
    paths["plain"] = root / "base"
    return paths


def tree(root: Path) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(root)): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize("name", CORPUS)
def test_bad_input(name, good, tmp_path, capsys, monkeypatch):
    case = CORPUS[name]
    skip_unless_possible(case)
    paths = {**good, "tmp": tmp_path}
    for broken, damage in case.broken.items():
        paths[broken] = copy(good.get(broken), tmp_path / broken, good)
        damage(paths[broken])
    for variable, value in case.env.items():
        monkeypatch.setenv(variable, resolve(value, paths))
    stage, _, flags = case.command.partition(" ")
    given = GIVEN[stage] + ("" if stage == "recommend" else " --out @out") if case.given else ""
    before, started = {path: tree(path) for path in (tmp_path, good["tmp"])}, time.monotonic()
    capsys.readouterr()
    assert run(f"{stage} {given} {flags}", paths) == 2
    assert time.monotonic() - started < LONGEST_S
    shown = capsys.readouterr()
    message = shown.err[shown.err.index("llmrec") :]
    assert "Traceback" not in shown.err and shown.out == ""
    assert "did not foresee" not in message
    for fragment in case.says:
        assert fragment in message
    assert {path: tree(path) for path in before} == before


def copy(source: Path | None, target: Path, good: dict[str, Path]) -> Path:
    """A copy that a case may break, beside a copy of what `replaced_by` puts in its place."""
    if source is None:
        return target
    if source.is_file():
        return shutil.copy(source, target)
    shutil.copytree(source, target)
    for name in ("other", "checkpoint"):
        if not (target.parent / name).exists():
            (target.parent / name).symlink_to(good[name])
    return target


def skip_unless_possible(case: Case) -> None:
    if case.needs == "data" and not os.environ.get("LLMREC_DATA"):
        pytest.skip("real datasets are not on this machine")
    if case.needs == "no gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")


def test_the_good_artefacts_are_good(good):
    assert all((good[name] / MANIFEST).is_file() for name in ("catalog", "views", "sid", "base", "checkpoint"))
    assert len(CORPUS) >= 40
