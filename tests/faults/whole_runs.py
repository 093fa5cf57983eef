"""`llmrec quickstart` and `llmrec run`, killed at random moments of any of their stages, and then run to the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from llmrec.runtime.manifest import read_manifest
from llmrec.stages.run import DIRECTORIES
from tests.faults.line import check_same_result
from tests.support.forks import Forks

# `@` is a directory with the files of `write_files`.
COMMANDS = {
    "quickstart": "quickstart --dataset simulated:60x30 --num-users 60 --model micro --epochs 1",
    "run": "run --interactions @/log.csv --items @/items.csv --epochs 1",
}
KILLS = 3  # of each run, in a stage and then in later ones
EQUAL = ("catalog", "views", "sid", "base")  # results that are equal file by file


class WholeRun:
    """One of both commands, run to its end once; then again with kills, and compared.

    Args:
        forks: Server that runs commands.
        name: quickstart or run.
        root: Directory for all results.
    """

    def __init__(self, forks: Forks, name: str, root: Path):
        self.forks, self.name, self.root = forks, name, root
        write_files(root)
        self.start(root / "whole")
        started = time.monotonic()
        assert forks.wait() == 0, (root / "stderr").read_text()
        self.seconds = time.monotonic() - started
        self.of_stage = {name: read_manifest(root / "whole" / name)["seconds"] for name in DIRECTORIES}

    def start(self, out: Path) -> int:
        argv = [word.replace("@", str(self.root)) for word in COMMANDS[self.name].split()]
        return self.forks.start([*argv, "--out", str(out)], self.root / "stderr")

    def kill(self, seed: int) -> list[str]:
        """Kill the run in some of its stages, let it end, compare, and return where it died."""
        out, rng, died = self.root / "killed", random.Random(f"{self.name} {seed}"), []
        shutil.rmtree(out, ignore_errors=True)
        for stage in sorted(rng.sample(DIRECTORIES, KILLS), key=DIRECTORIES.index):
            pid, partial = self.start(out), out / f"{stage}.partial"
            while not partial.is_dir() and not (out / stage).is_dir():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, self.of_stage[stage]))
            os.kill(pid, signal.SIGKILL)
            self.forks.wait(pid)
            unfinished = [path.name.removesuffix(".partial") for path in out.glob("*.partial")]
            died.append(unfinished[0] if unfinished else "between")
        self.start(out)
        assert self.forks.wait() == 0, (self.root / "stderr").read_text()
        whole = {path.name for path in (self.root / "whole").iterdir()}
        assert {path.name for path in out.iterdir()} == whole
        for name in whole:
            if (out / name).is_dir():
                roots = (out, self.root / "whole")
                check_same_result(out / name, self.root / "whole" / name, roots, name in EQUAL)
        return died


def write_files(root: Path) -> None:
    """A log of users who walk through twenty items in their order, and the items' titles."""
    rows = [
        (f"user-{u}", f"item-{(3 * u + place) % 20}", 1_700_000_000 + place) for u in range(60) for place in range(6)
    ]
    (root / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    titles = "".join(f"item-{n},film {n} of {'abcde'[n % 5]}\n" for n in range(20))
    (root / "items.csv").write_text("item_id,title\n" + titles)
