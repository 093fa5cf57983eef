"""The line of all stages on a small catalogue, each run to its end once; then again under a fault, and compared."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.numpy import load_file

from llmrec.runtime.manifest import MANIFEST, content_hash, read_manifest, verify
from llmrec.runtime.stage_directory import LOCK, RUN, SCRATCH
from llmrec.sid.table import SidTable
from tests.faults.failures import CALLS, CAN_FILTER
from tests.support.forks import Forks

TRAINED = "--max-steps 6 --save-steps 1 --batch-size 8 --micro-batch-size 8 --warmup-steps 0 --device cpu"
# Stage -> name of its result, and command; `@name` is the path of a result.
COMMANDS = {
    "prepare": ("catalog", "prepare --dataset simulated:60x30 --k-core 3"),
    "embed": ("views", "embed --catalog @catalog --text-encoder tfidf --collaborative-dim 4 --device cpu"),
    "tokenize": ("sid", "tokenize --catalog @catalog --views @views --codebook-size 4 --num-levels 2 --device cpu"),
    "extend": ("base", "extend --sid @sid --model micro --catalog @catalog --micro-hidden 32 --micro-layers 1"),
    "teach": ("ranker", "teach --catalog @catalog --ranker gru4rec --hidden 16 --max-epochs 3 --device cpu"),
    "sft": ("checkpoint", f"sft --catalog @catalog --model @base --train full --max-history 6 --logging-steps 4 "
            f"--dropout 0.1 {TRAINED}"),
    "dpo": ("preferred", f"dpo --catalog @catalog --model @checkpoint {TRAINED}"),
    "grpo": ("reinforced", f"grpo --catalog @catalog --model @checkpoint --num-generations 4 {TRAINED}"),
    "etegrec": ("etesid", "tokenize --method etegrec --catalog @catalog --views @views --view-names collaborative "
                "--num-levels 2 --codebook-size 6 --encoder-layers 16 --latent-dim 8 --max-epochs 10 --device cpu"),
    "etebase": ("etebase", "extend --sid @etesid --model micro --catalog @catalog --micro-hidden 32 --micro-layers 1"),
    "alternate": ("turned", "alternate --catalog @catalog --views @views --sid @etesid --model @etebase --epochs 1 "
                  "--batch-size 16 --max-history 5 --lora-rank 4 --warmup-steps 0 --save-steps 1 --logging-steps 3 "
                  "--cycle-steps 1 "
                  "--align-after 0.1 --freeze-after 0.8 --device cpu"),
    "refine": ("refined", "refine --catalog @catalog --model @checkpoint --min-gain 0 --device cpu"),
    "append": ("appended", "tokenize --append @sid --catalog @catalog --views @views --device cpu"),
    "evaluate": ("eval", "evaluate --catalog @catalog --model @checkpoint --max-examples 8 --device cpu"),
    "other eval": ("eval2", "evaluate --catalog @catalog --model @preferred --max-examples 8 --device cpu"),
    "ensemble": ("mixed", "ensemble --catalog @catalog --members @checkpoint @ranker --max-examples 8 --device cpu"),
    "compare": ("compared.html", "compare --runs @eval @eval2 --html @compared.html"),
    "recommend": ("answers.jsonl", "recommend --model @checkpoint --catalog @catalog --user user-1 user-2 "
                  "--out @answers.jsonl --device cpu"),
    "users": ("recs", "recommend --model @checkpoint --users @catalog/split.parquet --shard-size 30 --device cpu"),
}  # fmt: skip
NOT_FAULTED = ("etegrec", "etebase", "other eval")  # of the kind of another stage
STAGES = tuple(stage for stage in COMMANDS if stage not in NOT_FAULTED)
EQUAL = ("prepare", "embed", "tokenize", "append", "extend", "users")  # stages whose results are equal file by file
LEFT = {LOCK, RUN, SCRATCH, MANIFEST}


class Line:
    """Results of all stages, and runs of a stage again into another directory.

    Args:
        forks: Server that runs commands.
        root: Directory of the results.

    Attributes:
        seconds: Stage -> seconds that it took.
    """

    def __init__(self, forks: Forks, root: Path):
        self.forks, self.root, self.seconds = forks, root, dict[str, float]()
        for stage in COMMANDS:
            self.start(stage, root)
            started = time.monotonic()  # the server has its libraries once it has started a command
            assert forks.wait() == 0, f"{stage}: {(root / 'stderr').read_text()}"
            self.seconds[stage] = time.monotonic() - started

    def out(self, stage: str, directory: Path) -> Path:
        """Result of a stage in a directory."""
        return directory / COMMANDS[stage][0]

    def start(
        self,
        stage: str,
        directory: Path,
        fault: Mapping | None = None,
        more: Sequence[str] = (),
        said: str = "stderr",
        **options: object,
    ) -> int:
        """Start a stage with its result, and what it says, in a directory, and return its process id."""
        name, command = COMMANDS[stage]
        places = {each: self.root / each for each, _ in COMMANDS.values()} | {name: directory / name}
        flags = [re.sub(r"^@([^/]+)", lambda found: str(places[found[1]]), word) for word in command.split()]
        flags += [] if f"@{name}" in command.split() else ["--out", str(directory / name)]
        return self.forks.start([*flags, *more], directory / said, fault=dict(fault) if fault else None, **options)

    def finish(self, stage: str, directory: Path) -> None:
        """Run a stage, after a fault of it, and check that it ends as it did without one."""
        self.start(stage, directory)
        status, said = self.forks.wait(), (directory / "stderr").read_text()
        if status == 2 and "exists; remove it" in said:  # the file that compare writes was there already
            assert stage == "compare"
        else:
            assert status == 0, f"{stage}: {said}"
        self.check_same(stage, directory)

    def check_whole_or_absent(self, stage: str, directory: Path) -> None:
        """Check that nothing half made lies in the place of the result."""
        out = self.out(stage, directory)
        if not out.exists():
            return
        if out.suffix:
            assert self.normal(out, directory) == self.normal(self.out(stage, self.root), directory)
        else:
            verify(out)

    def check_same(self, stage: str, directory: Path) -> None:
        """Check a result against the one without a fault: weights, semantic IDs, metrics, and the files there are."""
        out, expected = self.out(stage, directory), self.out(stage, self.root)
        if out.suffix:
            assert self.normal(out, directory) == self.normal(expected, directory)
            return
        left = {path.name for path in directory.iterdir()} - {out.name}
        left = {name for name in left if not name.startswith("stderr")}
        assert not left, f"left behind: {left}"
        check_same_result(out, expected, (directory, self.root), stage in EQUAL)

    def normal(self, path: Path, directory: Path) -> object:
        """Content of a file without times, speeds and paths."""
        return normal(path, (directory, self.root))


def check_same_result(out: Path, expected: Path, roots: Sequence[Path], by_file: bool) -> None:
    """Check a result of a stage against the one without a fault: weights, semantic IDs, metrics, and which files.

    Args:
        out: The result.
        expected: The one without a fault.
        roots: Directories whose names differ in both.
        by_file: Compare the files to the bit.
    """
    verify(out)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {path.relative_to(expected).as_posix() for path in expected.rglob("*") if path.is_file()}
    if by_file:
        assert content_hash(out) == content_hash(expected)
    for name in files:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(out / name), load_file(expected / name)
            assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours), name
        elif name.endswith(".parquet"):
            assert pq.read_table(out / name).equals(pq.read_table(expected / name)), name
        elif name.endswith(".json") and name != MANIFEST:
            assert normal(out / name, roots) == normal(expected / name, roots), name
    counts = (read_manifest(path)["counts"] for path in (out, expected))
    assert without_times(next(counts)) == without_times(next(counts))
    if (out / "sid_table.parquet").is_file():
        assert SidTable.load(out).sha256 == SidTable.load(expected).sha256


def normal(path: Path, roots: Sequence[Path]) -> object:
    """Content of a file without times, speeds and paths."""
    text = path.read_text(encoding="utf-8")
    for root in roots:
        text = text.replace(str(root), "")
    return without_times(json.loads(text)) if path.suffix == ".json" else text


TIMES = ("second", "per_s", "runtime", "time", "sha256", "catalog", "views", "model", "teacher", "flos",
         "out")  # fmt: skip


def without_times(value: object) -> object:
    """JSON without the entries that differ from run to run."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if not any(word in key for word in TIMES)}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def kill(line: Line, stage: str, seed: int, directory: Path) -> str:
    """Kill a stage at a random moment, run it again, and compare; return what had come of it when it died."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    pid = line.start(stage, directory)
    time.sleep(random.Random(f"{stage} {seed}").uniform(0.0, 0.95) * line.seconds[stage])
    os.kill(pid, signal.SIGKILL)
    died = line.forks.wait(pid) == -signal.SIGKILL
    out = line.out(stage, directory)
    partial = out.with_name(out.name + ".partial").is_dir()
    line.check_whole_or_absent(stage, directory)
    line.finish(stage, directory)
    return (
        "finished before"
        if not died
        else "whole"
        if out.exists() and not partial
        else "partial"
        if partial
        else "absent"
    )


def fail(line: Line, stage: str, fault: Mapping, directory: Path) -> str:
    """Let calls of a stage fail, check what it says, run it again and compare; return how it ended.

    Args:
        line: Results without a fault.
        stage: Stage to run.
        fault: Failure, as `tests.faults.failures.install` takes it; or the number of bytes that files may have.
        directory: Directory for the result.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if "bytes" in fault:
        line.start(stage, directory, file_size_limit=fault["bytes"])
    else:
        line.start(stage, directory, {"under": str(directory), **fault})
    status, said = line.forks.wait(), (directory / "stderr").read_text()
    told = f"{stage}, {fault}: status {status}: {said}"
    assert status in (0, 2), told
    assert "Traceback" not in said and "did not foresee" not in said, told
    if status:
        message = said.strip().splitlines()[-1]
        assert os.strerror(fault.get("errno", errno.EFBIG)) in message and str(directory) in message, told
    line.check_whole_or_absent(stage, directory)
    line.finish(stage, directory)
    return "told" if status else "absorbed"


def random_fault(line: Line, stage: str, seed: int) -> dict:
    """A failure: one call, every call from a moment on, or a limit of the size of files."""
    rng = random.Random(f"{stage} {seed}")
    what = rng.random()
    if what < 0.15:
        return {"bytes": rng.choice((2_000, 3_000, 5_000, 20_000, 60_000))}  # the message needs some, too
    fault = {"errno": rng.choice((errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE, errno.EROFS))}
    if what < 0.6 or not CAN_FILTER:
        return {**fault, "call": rng.choice(CALLS), "number": rng.choice((1, 1, 2, 3, 4, 5, 7, 9, 12, 16, 24))}
    return {**fault, "call": rng.choice((*CALLS, "write")), "after_s": rng.uniform(0, 0.9) * line.seconds[stage]}
