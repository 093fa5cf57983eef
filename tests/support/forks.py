"""Commands of llmrec in processes that can be killed, without paying for the imports each time.

A server process imports what the stages need and then forks one child per command. It computes nothing itself, so no
thread of torch or polars is lost in a fork.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("llmrec.stages.prepare", "llmrec.stages.sft", "llmrec.stages.alternate", "llmrec.stages.dpo",
             "llmrec.stages.grpo", "llmrec.stages.refine",
             "llmrec.stages.teach", "llmrec.stages.ensemble", "llmrec.stages.compare", "llmrec.stages.recommend",
             "llmrec.stages.quickstart", "llmrec.stages.run", "llmrec.stages.extend", "llmrec.stages.embed",
             "llmrec.stages.tokenize", "llmrec.stages.evaluate", "llmrec.serve.app", "llmrec.serve.server",
             "llmrec.recommender", "peft")  # fmt: skip


class Forks:
    """The server; `start` returns at once, `wait` gives the exit status (negative: the signal) and stderr."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "LLMREC_QUIET": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def start(
        self,
        argv: list[str],
        stderr: Path,
        file_size_limit: int | None = None,
        environment: dict[str, str] | None = None,
        die_in: tuple[str, int] | None = None,
        fault: dict | None = None,
    ) -> int:
        """Process id of a new child that runs the command.

        Args:
            argv: The command, without `llmrec`.
            stderr: File for what it writes.
            file_size_limit: Bytes its files may grow to.
            environment: Variables for it alone.
            die_in: A function by its dotted name, and the call of it (from 1) in which the child kills itself.
            fault: Failure of system calls, as `tests.faults.failures.install` takes it.
        """
        request = {"argv": argv, "stderr": str(stderr), "limit": file_size_limit, "fault": fault}
        return int(self._ask({**request, "environment": environment or {}, "die_in": die_in}))

    def wait(self, pid: int | None = None) -> int:
        """Exit status of a child, of the last one started if none is named."""
        return int(self._ask({"wait": pid}))

    def _ask(self, request: dict) -> str:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()


def serve() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # children neither collect nor copy what was imported
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    pid = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"] or pid, 0)[1]), file=answers)
            continue
        pid = os.fork()
        if pid == 0:
            run(**request)
        print(pid, file=answers)


def run(
    argv: list[str],
    stderr: str,
    limit: int | None,
    fault: dict | None,
    environment: dict[str, str],
    die_in: tuple[str, int] | None,
) -> None:
    import resource

    from llmrec.cli import main

    target = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.environ.update(environment)
    if die_in is not None:
        kill_at_call(*die_in)
    if fault is not None:
        from tests.faults.failures import install

        install(**fault)
    status = 1
    try:
        status = main(argv)
    finally:
        sys.stderr.flush()
        os._exit(status)


def kill_at_call(name: str, number: int) -> None:
    """Kill this process, as kill -9 does, where it calls a function for the given time."""
    module, _, attribute = name.rpartition(".")
    owner = importlib.import_module(module)
    function, calls = getattr(owner, attribute), itertools.count(1)

    def dying(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, attribute, dying)


if __name__ == "__main__":
    serve()
