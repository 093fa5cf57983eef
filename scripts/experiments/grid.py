"""Pipelines of stages, several at once on one machine, with one line of JSON for each.

A run is a list of stages and their options. A stage's directory is named by what makes its content (its options, the
seed, and all stages before it), so runs share what they have in common, and a call on a machine that still has the
directories goes on where the last one stopped. Stages are processes of their own: one that fails, or runs out of
memory, leaves the others alone. Results are written as runs end, so a call that is cut off loses none, and the next
call with the same file runs only what has no result in it. What is open stands beside it, in `<results>.open.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Option of a stage -> stages whose directory it takes, the nearest before it; what no stage of the run makes is given.
CATALOG = {"catalog": ("prepare",)}
WIRES = {
    "embed": CATALOG,
    "tokenize": {**CATALOG, "views": ("embed",)},
    "extend": {**CATALOG, "sid": ("alternate", "tokenize")},
    "sft": {**CATALOG, "model": ("alternate", "sft", "extend")},
    "alternate": {
        **CATALOG,
        "views": ("embed",),
        "model": ("alternate", "sft", "extend"),
        "sid": ("tokenize",),
    },
    "dpo": {**CATALOG, "model": ("alternate", "sft")},
    "grpo": {**CATALOG, "model": ("alternate", "sft")},
    "evaluate": {**CATALOG, "model": ("dpo", "grpo", "alternate", "sft")},
}
Step = tuple[str, dict[str, Any]]  # a stage and its options
NO_IDENTITY = ("compile", "micro_batch_size", "logging_steps", "save_steps", "device")  # change no result


@dataclass(frozen=True)
class Run:
    """A named pipeline: (stage, options) in order, all with one seed."""

    name: str
    steps: tuple[Step, ...]
    seed: int = 0

    @property
    def key(self) -> str:
        return self.digest(len(self.steps))

    def digest(self, depth: int) -> str:
        """Hash of the first stages."""
        parts = [
            [stage, {k: v for k, v in options.items() if k not in NO_IDENTITY}] for stage, options in self.steps[:depth]
        ]
        return hashlib.sha256(json.dumps([parts, self.seed], sort_keys=True).encode()).hexdigest()[:12]


def flags(options: dict[str, Any]) -> list[str]:
    """Options as `llmrec` takes them; None is left out."""
    found = []
    for name, value in options.items():
        if value is not None:
            words = [str(each).lower() if isinstance(each, bool) else str(each) for each in as_list(value)]
            found += ["--" + name.replace("_", "-"), *words]
    return found


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class Failed(Exception):
    """A stage ended badly; the message is the end of its log."""


class Grid:
    """Runs pipelines and keeps what they found.

    Args:
        arguments: Of `parser`.
        measure: Run and the directories of its stages -> what is kept of it.
        table: All runs of the experiment, of which those without a result are listed as open.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        measure: Callable[[Run, list[Path]], dict[str, Any]],
        table: Sequence[Run] = (),
    ):
        self.arguments, self.measure, self.table, self.started = arguments, measure, table, time.monotonic()
        self.work, self.results_file = Path(arguments.work), Path(arguments.results)
        (self.work / "logs").mkdir(parents=True, exist_ok=True)
        self.results_file.parent.mkdir(parents=True, exist_ok=True)
        self.lock, self.of_directory = threading.Lock(), defaultdict(threading.Lock)
        earlier = (self.results_file, *map(Path, arguments.resume))
        self.results = {result["key"]: result for file in earlier for result in read(file)}
        self.environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip

    def run_all(self, runs: list[Run]) -> None:
        """Run what there is no result of yet, `--parallel` at a time; none is started beyond `--budget-s`."""
        waiting = [run for run in runs if "error" in self.results.get(run.key, {"error": ""})]
        left: list[str] = []

        def work() -> None:
            while True:
                with self.lock:
                    if not waiting:
                        return
                    run = waiting.pop(0)
                    if self.seconds() > self.arguments.budget_s:
                        left.append(f"{run.name} seed {run.seed}")
                        continue
                self.run_one(run)

        threads = [threading.Thread(target=work) for _ in range(min(self.arguments.parallel, len(waiting)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if left:
            self.say(f"not started, over --budget-s: {', '.join(left)}")

    def run_one(self, run: Run) -> None:
        result: dict[str, Any] = {"key": run.key, "name": run.name, "seed": run.seed, "steps": run.steps}
        started = time.monotonic()
        try:
            result |= self.measure(run, [self.stage(run, depth) for depth in range(1, len(run.steps) + 1)])
            self.say(f"{run.name} seed {run.seed}: {time.monotonic() - started:.0f} s")
        except Exception as error:  # the other runs go on
            result["error"] = str(error) if isinstance(error, Failed) else repr(error)
            self.say(f"{run.name} seed {run.seed}: FAILED {result['error'][-300:]}")
        result["wall_s"] = round(time.monotonic() - started, 1)
        with self.lock:
            self.results[run.key] = result
            self.write()

    def write(self) -> None:
        """Write the results, and the runs of the table that have none or failed, one line each."""
        replace(self.results_file, "".join(json.dumps(each) + "\n" for each in self.results.values()))
        if self.table:
            replace(self.results_file.with_suffix(".open.txt"), "".join(map(self.open_line, self.table)))

    def open_line(self, run: Run) -> str:
        """Name and seed of a run without a result, and what it last said if it failed; nothing for any other run."""
        result = self.results.get(run.key)
        if result is None:
            return f"{run.name} seed {run.seed}\n"
        return f"{run.name} seed {run.seed}: {last_line(result)}\n" if "error" in result else ""

    def directory(self, run: Run, depth: int) -> Path:
        return self.work / f"{run.steps[depth - 1][0]}-{run.digest(depth)}"

    def stage(self, run: Run, depth: int) -> Path:
        """Directory of a stage of a run, which is run unless its result is there."""
        (stage, options), out = run.steps[depth - 1], self.directory(run, depth)
        for option, sources in WIRES.get(stage, {}).items():
            places = [place for place in range(1, depth) if run.steps[place - 1][0] in sources]
            if places:
                made = self.directory(run, places[-1])
                has_its_own = option == "sid" and run.steps[places[-1] - 1][0] == "alternate"
                options = {**options, option: made / "sid" if has_its_own else made}
        with self.lock:
            lock = self.of_directory[out]
        with lock:
            if not (out / "manifest.json").is_file():
                label = f"{run.name.replace('/', '-')}-{run.seed}-{depth}-{stage}"
                self.process(label, [stage, *flags({**options, "seed": run.seed, "out": out})])
        return out

    def process(self, label: str, words: list[str]) -> None:
        """One `llmrec` command, to its end or to the deadline."""
        log = self.work / "logs" / f"{label}.log"
        with log.open("a") as file:
            file.write(" ".join(words) + "\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "llmrec", *words], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env=self.environment, start_new_session=True,
            )  # fmt: skip
            try:
                status: int | str = process.wait(max(1.0, self.arguments.deadline_s - self.seconds()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = "deadline"
        if status != 0:
            raise Failed(f"{words[0]}: {status}: {log.read_text(errors='replace')[-1500:]}")

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        print(f"[{self.seconds():.0f} s] {text}", flush=True)


def replace(file: Path, text: str) -> None:
    """Write a file so that whoever reads it sees the old one or the new one."""
    scratch = file.with_suffix(".tmp")
    scratch.write_text(text)
    scratch.replace(file)


def last_line(result: dict[str, Any]) -> str:
    """The last line of what a failed run said."""
    return result["error"].strip().splitlines()[-1][:200]


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def chosen(runs: list[Run], arguments: argparse.Namespace) -> list[Run]:
    """Runs whose name matches one of `--only` and none of `--skip`."""
    return [
        run
        for run in runs
        if any(re.search(pattern, run.name) for pattern in arguments.only)
        and not any(re.search(pattern, run.name) for pattern in arguments.skip)
    ]


def carry_out(
    arguments: argparse.Namespace,
    runs: list[Run],
    measure: Callable[[Run, list[Path]], dict[str, Any]],
    show: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Run what is chosen of the runs, list those that are open, and show all results there are."""
    grid = Grid(arguments, measure, runs)
    grid.write()
    grid.run_all(chosen(runs, arguments))
    show(list(grid.results.values()))


def tell_failures(results: list[dict[str, Any]]) -> None:
    """The last line of what each run said that failed."""
    for result in results:
        if "error" in result:
            print(f"FAILED {result['name']} seed {result['seed']}: {last_line(result)}")


def parser(description: str) -> argparse.ArgumentParser:
    """Flags of every experiment."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--only", nargs="+", default=["."], metavar="PATTERN", help="expressions, of names of runs")
    made.add_argument("--skip", nargs="*", default=[], metavar="PATTERN")
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--parallel", type=int, default=6)
    made.add_argument("--budget-s", type=float, default=1e9, help="nothing new is started after it")
    made.add_argument("--deadline-s", type=float, default=1e9, help="what still runs then is ended and noted as failed")
    made.add_argument("--work", required=True, help="directory of what the stages write")
    made.add_argument("--results", required=True, help="JSON lines file to write; what is in it already is not run")
    made.add_argument("--resume", nargs="*", default=[], help="more such files of earlier calls, on other machines")
    return made
