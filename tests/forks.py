"""Commands of llmrec in processes that can be killed, without paying for the imports each time.

A server process imports what the stages need and then forks one child per command. It computes nothing itself, so no
thread of torch or polars is lost in a fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("llmrec.stages.prepare", "llmrec.stages.sft", "llmrec.stages.extend", "llmrec.stages.embed",
             "llmrec.stages.tokenize", "llmrec.stages.evaluate", "llmrec.recommender", "trl", "peft")  # fmt: skip


class Forks:
    """The server; `start` returns at once, `wait` gives the exit status (negative: the signal) and stderr."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "LLMREC_QUIET": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def start(self, argv: list[str], stderr: Path, file_size_limit: int | None = None) -> int:
        """Process id of a new child that runs the command; its files may grow to `file_size_limit` bytes."""
        return int(self._ask({"argv": argv, "stderr": str(stderr), "limit": file_size_limit}))

    def wait(self) -> int:
        """Exit status of the child that was started last."""
        return int(self._ask({}))

    def _ask(self, request: dict) -> str:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()


def serve() -> None:
    import importlib

    for name in LIBRARIES:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    pid = 0
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)
            continue
        pid = os.fork()
        if pid == 0:
            run(**request)
        print(pid, file=answers)


def run(argv: list[str], stderr: str, limit: int | None) -> None:
    import resource

    from llmrec.cli import main

    target = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    status = 1
    try:
        status = main(argv)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
