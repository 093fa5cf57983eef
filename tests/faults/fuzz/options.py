"""Fuzzed command lines and YAML files of every stage, on results that are whole.

Short stages run to their end. A longer one is stopped where its work would begin, after every check of its options.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from llmrec import cli
from llmrec.configs import STAGES
from tests.faults.fuzz.files import damage
from tests.faults.fuzz.judge import Accepted, Case, command
from tests.faults.line import COMMANDS, Line
from tests.support.forks import Forks

RUN_TO_THE_END = ("prepare", "compare", "recommend")
VALUES = ("", "0", "-1", "1", "2", "3", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 20, "true",
          "maybe", "null", "~", "None", "[]", "[1, 2]", "{}", "{a: 1}", "!!python/object:os.system x", "é", "𝕏",
          "\x1b[2J", "a\nb", "a: b", "*a", "&a", "%", "/", "/dev/null", "/proc/x", ".", "..", "~", "a" * 300,
          "x" * 5000, "\x00", "simulated:0x0", "simulated:3x3", "cpu", "cuda:99", "auto", "0x10", "1_000", " 5",
          "５")  # fmt: skip
OTHER: tuple[object, ...] = (None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), [], [[]], [None], {},
                             {"a": 1}, "", ["a", "b"], [1, "x"])  # fmt: skip


def prepare_all(directory: Path) -> Line:
    """Results of every stage."""
    forks, root = Forks(), directory / "line"
    root.mkdir()
    try:
        return Line(forks, root)
    finally:
        forks.close()


def case(seed: int, directory: Path, shared: Line) -> Case:
    """One fuzzed command."""
    rng = random.Random(seed)
    folder = directory / "options"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name = rng.choice([name for name in COMMANDS if name != "other eval"])
    argv = argv_of(name, shared.root, folder)
    count = rng.choices((0, 1, 2, 3), (15, 65, 12, 8))[0]
    if rng.random() < 0.5:
        argv = as_yaml(rng, argv, folder, count)
    else:
        for _ in range(count):
            change_flags(rng, argv)

    def run() -> None:
        with contextlib.chdir(folder), long_work_left_out(argv[0] if argv else ""):
            command(argv)

    return Case(count, run, f"seed {seed}: {argv!r}"[:3000])


def argv_of(name: str, root: Path, folder: Path) -> list[str]:
    """Valid command line of a stage."""
    result, line = COMMANDS[name]
    places = {f"@{each}": str(root / each) for each, _ in COMMANDS.values()} | {f"@{result}": str(folder / result)}
    argv = [places.get(word, word) for word in line.split()]
    return argv if f"@{result}" in line.split() else [*argv, "--out", str(folder / result)]


@contextlib.contextmanager
def long_work_left_out(stage: str) -> Iterator[None]:
    """Stop a stage where its work would begin."""
    if stage in RUN_TO_THE_END or stage not in STAGES:
        yield
        return
    with contextlib.ExitStack() as stack:
        for name in (*STAGES, "append"):
            module = cli.module_of(name)
            begins = "bind" if name == "serve" else "run_stage"
            if hasattr(module, begins):
                stack.enter_context(mock.patch.object(module, begins, side_effect=Accepted))
        yield


def change_flags(rng: random.Random, argv: list[str]) -> None:
    """Change a command line, in place."""
    stage, at = argv[0], rng.randrange(1, len(argv))
    fields = STAGES[stage].__dataclass_fields__ if stage in STAGES else {"x": None}
    known = [f"--{field.replace('_', '-')}" for field in fields]
    what = rng.randrange(8)
    if what <= 2:
        argv += [rng.choice(known), rng.choice(VALUES)]
    elif what == 3:
        argv[at] = rng.choice(VALUES)
    elif what == 4:
        argv[at] = argv[at][:-1] if rng.random() < 0.5 else f"{argv[at]}x"
    elif what == 5:
        del argv[at]
    elif what == 6:
        argv.insert(at, rng.choice((*VALUES, "--", "-h", "--json", "--config", "--no-such-flag", "-k", "--out=", "-")))
    else:
        argv[0] = rng.choice((*STAGES, stage.upper(), "", "--version", "-x"))


def as_yaml(rng: random.Random, argv: list[str], folder: Path, count: int) -> list[str]:
    """The options of a command line as a YAML file, changed."""
    values: dict[str, Any] = {}
    key = ""
    for word in argv[1:]:
        if word.startswith("--"):
            key = word[2:].replace("-", "_")
            values[key] = True
        elif word == "-k":
            values[key := "k"] = True
        elif values[key] is True:
            values[key] = word
        else:
            values[key] = [*(values[key] if isinstance(values[key], list) else [values[key]]), word]
    fields = STAGES[argv[0]].__dataclass_fields__
    block = {key: values.pop(key) for key in [*values] if key not in fields}
    if block:
        values["options"] = block
    for key in [*values]:
        if key in fields and "list" in str(fields[key].type) and not isinstance(values[key], list):
            values[key] = [values[key]]
    of_bytes = rng.random() < 0.3
    for _ in range(0 if of_bytes else count):
        where = block if block and rng.random() < 0.4 else values
        what, name = rng.randrange(4), rng.choice([*where] or ["x"])
        if what == 0:
            where[rng.choice([*fields])] = rng.choice(OTHER)
        elif what == 1:
            where[name] = rng.choice((*OTHER, *VALUES))
        elif what == 2:
            where[f"{name}{rng.choice('xs_')}"] = where.pop(name, 1)
        else:
            where.pop(name, None)
    content = yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
    for _ in range(count if of_bytes else 0):
        content = damage(rng, content)
    (folder / "run.yaml").write_bytes(content)
    return [argv[0], "--config", str(folder / "run.yaml")]
