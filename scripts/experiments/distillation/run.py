"""The queue of the distillation experiment: several processes on one GPU take jobs from one plan.

    python scripts/experiments/distillation/run.py plan STATE          # all jobs, or the open ones: --jobs, --results
    python scripts/experiments/distillation/run.py work STATE DATA     # in as many processes as the GPU bears
    python scripts/experiments/distillation/run.py gather STATE OUT    # results.jsonl and ranks.zip of what is done

A worker takes the first job that is free and whose teachers are fitted, and repeats. A job that has a result is not run
again, except a teacher whose checkpoint is gone. README.md explains the jobs and how to go on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import traceback
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DEVICE, Data
from fitting import Fit, Fitted, Job, Surroundings
from itemknn import fit_knn
from plan import all_jobs, with_teachers
from ranking import table
from sasrec import fit_ranker
from teacher import fit_mix
from train import fit_sid

FITS: dict[str, Fit] = {"ranker": fit_ranker, "knn": fit_knn, "mix": fit_mix, "sid": fit_sid}
LAST_MINUTES = 900  # seconds before the end in which a job is started only if jobs like it would still end in time


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


class State:
    """The directory that all workers share.

    plan.jsonl has the jobs; results, ranks and checkpoints are what finished jobs leave; claims, progress and failures
    belong to the workers that run now.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.results, self.ranks, self.checkpoints = (self._make(name) for name in ("results", "ranks", "checkpoints"))
        self.claims, self.progress, self.failures = (self._make(name) for name in ("claims", "progress", "failures"))

    def _make(self, name: str) -> Path:
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name

    def start(self, jobs: list[Job], results: Iterable[dict[str, Any]]) -> None:
        """Write the plan and earlier results, and forget what workers that were interrupted had claimed."""
        for directory in (self.claims, self.progress, self.failures):
            shutil.rmtree(directory)
            directory.mkdir()
        for line in results:
            self._write(self.results / f"{line['job']['id']}.json", json.dumps(line) + "\n")
        self._write(self.path / "plan.jsonl", "".join(json.dumps(job) + "\n" for job in jobs))

    def jobs(self) -> list[Job]:
        """Jobs of the plan, which may change while workers run."""
        return read_lines(self.path / "plan.jsonl")

    def is_ready(self, job: Job) -> bool:
        """Whether a job is not done, and its teachers are."""
        if not all((self.checkpoints / f"{name}.pt").exists() for name in job.get("teacher", [])):
            return False
        has_result = (self.results / f"{job['id']}.json").exists()
        return not (has_result and (job["kind"] == "sid" or (self.checkpoints / f"{job['id']}.pt").exists()))

    def claim(self, job: Job) -> bool:
        """Claim a job; False if another worker has."""
        try:
            (self.claims / job["id"]).mkdir()
        except FileExistsError:
            return False
        return True

    def save(self, job: Job, fitted: Fitted, seconds: float) -> None:
        """Write the checkpoint, the ranks and, last, the result of a job."""
        if fitted.checkpoint is not None:
            written = self.checkpoints / f"{job['id']}.tmp"
            torch.save(fitted.checkpoint, written)
            written.rename(written.with_name(f"{job['id']}.pt"))
        named = {f"{split}|{v}|{c}": r for split, ranks in fitted.ranks.items() for (v, c), r in ranks.items()}
        np.savez_compressed(self.ranks / f"{job['id']}.npz", **named)
        tables = {split: table(ranks) for split, ranks in fitted.ranks.items()}
        device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
        line = {"job": job, **fitted.result, "seconds": round(seconds, 1), **tables}
        line |= {"device": device, "torch": torch.__version__}
        self._write(self.results / f"{job['id']}.json", json.dumps(line) + "\n")
        (self.progress / job["id"]).unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        written = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        written.write_text(text)
        written.rename(path)


class Worker:
    """One process that runs jobs.

    Args:
        state: The shared directory.
        data: Directory of the .npz files.
        shorten: Share of the steps to run; below 1 for smoke tests.
        max_users: Number of users to keep, for smoke tests.
    """

    def __init__(self, state: State, data: Path, shorten: float = 1.0, max_users: int | None = None):
        self.state, self.data, self.shorten, self.max_users = state, data, shorten, max_users
        self._loaded: dict[str, Data] = {}

    def run(self, job: Job) -> None:
        """Run a job, without compilation if that fails."""
        began, name = time.time(), job["data"]
        if name not in self._loaded:
            self._loaded = {name: Data(self.data / f"{name}.npz", self.max_users)}

        def note(step: int, curve: list) -> None:
            text = f"{job['id']} step {step} {time.time() - began:.0f}s {curve[-3:]}\n"
            (self.state.progress / job["id"]).write_text(text)

        around, fit = Surroundings(self.state.checkpoints, note, self.shorten), FITS[job["kind"]]
        try:
            fitted = fit(self._loaded[name], job, around)
        except Exception:
            if not job.get("compile"):
                raise
            print("without compile:", job["id"], traceback.format_exc()[-300:], flush=True)
            fitted = fit(self._loaded[name], {**job, "compile": False}, around)
        self.state.save(job, fitted, time.time() - began)

    def work(self, budget_s: float, drain: bool) -> None:
        """Run jobs until the budget is spent or, if `drain`, until no job is ready."""
        stop = time.time() + budget_s
        while time.time() <= stop:
            job = self._next(stop)
            if job is None:
                if drain:
                    return
                time.sleep(1)
                continue
            try:
                self.run(job)
            except Exception:
                (self.state.failures / job["id"]).write_text(traceback.format_exc())
                print(job["id"], "FAILED", traceback.format_exc()[-600:], flush=True)
            if DEVICE == "cuda":
                torch.cuda.empty_cache()

    def _next(self, stop: float) -> Job | None:
        """Claim the first job that is ready and would end in time."""
        took = self._seconds_of_kinds() if stop - time.time() < LAST_MINUTES else {}
        for job in self.state.jobs():
            in_time = time.time() + float(np.median(took.get(_likeness(job), [0]))) <= stop
            if in_time and self.state.is_ready(job) and self.state.claim(job):
                return job
        return None

    def _seconds_of_kinds(self) -> dict[tuple, list[float]]:
        took = defaultdict(list)
        for path in self.state.results.glob("*.json"):
            line = json.loads(path.read_text())
            took[_likeness(line["job"])].append(line["seconds"])
        return took


def _likeness(job: Job) -> tuple:
    return job["data"], job["kind"], bool(job.get("drawn"))


def gather(state: State, out: Path) -> None:
    """Collect what is done, and print it with what runs and what failed."""
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(state.results.glob("*.json"))
    (out / "results.jsonl").write_text("".join(path.read_text() for path in paths))
    with zipfile.ZipFile(out / "ranks.zip", "w") as archive:
        for path in sorted(state.ranks.glob("*.npz")):
            archive.write(path, path.name)
    for line in map(json.loads, (path.read_text() for path in paths)):
        scores = (f"{v}:{x['plain']['N@10']:.4f}/{x['excl']['N@10']:.4f}" for v, x in line["valid"].items())
        steps, seconds = f"{line['best_step']}/{line['steps']}", f"{line['seconds']:.0f}s"
        print(f"{line['job']['id']:34s} {steps} {seconds} valid {' '.join(scores)}")
    for path in sorted(state.progress.iterdir()):
        print("running:", path.read_text().strip())
    for path in sorted(state.failures.iterdir()):
        print("failed:", path.name, path.read_text()[-400:])


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    planned = commands.add_parser("plan", help="write the jobs, and forget claims of interrupted workers")
    planned.add_argument("--jobs", type=Path, help="JSON lines of the jobs to run; all of plan.py by default")
    planned.add_argument("--results", type=Path, help="results.jsonl of earlier runs")
    worker = commands.add_parser("work", help="run jobs until there is no time left")
    worker.add_argument("--budget-s", type=float, default=float("inf"), help="seconds after which no job is started")
    worker.add_argument("--drain", action="store_true", help="stop when no job is ready, instead of waiting for one")
    worker.add_argument("--shorten", type=float, default=1.0, help="share of the steps to run, for smoke tests")
    worker.add_argument("--max-users", type=int, help="number of users to keep, for smoke tests")
    gathered = commands.add_parser("gather", help="collect results.jsonl and ranks.zip")
    for command in (planned, worker, gathered):
        command.add_argument("state", type=Path, help="directory that all workers share")
    worker.add_argument("data", type=Path, help="directory of the .npz files of export.py")
    gathered.add_argument("out", type=Path, help="directory for results.jsonl and ranks.zip")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    state = State(arguments.state)
    if arguments.command == "plan":
        results = read_lines(arguments.results) if arguments.results else []
        jobs = read_lines(arguments.jobs) if arguments.jobs else all_jobs()
        state.start(with_teachers(jobs, [line["job"] for line in results]) if arguments.jobs else jobs, results)
    elif arguments.command == "work":
        torch.set_float32_matmul_precision("high")
        torch.set_num_threads(1)
        worker = Worker(state, arguments.data, arguments.shorten, arguments.max_users)
        worker.work(arguments.budget_s, arguments.drain)
    else:
        gather(state, arguments.out)


if __name__ == "__main__":
    main()
