"""Kills and failing calls by hand: `python -m tests.faults kills --first 100 --count 15`, seeds of every stage.

`runs` kills `llmrec quickstart` and `llmrec run`.
"""

from __future__ import annotations

import argparse
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from tests.faults.line import STAGES, Line, fail, kill, random_fault
from tests.faults.whole_runs import COMMANDS, WholeRun
from tests.support.forks import Forks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("kills", "failures", "runs"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    arguments = parser.parse_args()
    outcomes, forks = Counter[str](), Forks()
    if arguments.kind == "runs":
        kill_runs(forks, range(arguments.first, arguments.first + arguments.count))
        return
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "line").mkdir()
        line = Line(forks, root / "line")
        for seed in range(arguments.first, arguments.first + arguments.count):
            for stage in arguments.stages:
                try:
                    if arguments.kind == "kills":
                        outcome = kill(line, stage, seed, root / "run")
                    else:
                        outcome = fail(line, stage, random_fault(line, stage, seed), root / "run")
                except AssertionError:
                    outcome = "DEFECT"
                    print(f"--- {stage} {seed}\n{traceback.format_exc()[-3000:]}", flush=True)
                outcomes[outcome] += 1
            seeds = f"{arguments.first}..{seed} of {len(arguments.stages)} stages"
            print(f"{arguments.kind}, seeds {seeds}: {dict(outcomes)}", flush=True)
    forks.close()
    raise SystemExit("DEFECT" in outcomes)


def kill_runs(forks: Forks, seeds: range) -> None:
    """Kill both commands that run all stages, and print in which stages they died."""
    for name in COMMANDS:
        with tempfile.TemporaryDirectory() as directory:
            run, died = WholeRun(forks, name, Path(directory)), Counter[str]()
            for seed in seeds:
                died.update(run.kill(seed))
                print(f"{name}, seeds {seeds.start}..{seed}, {run.seconds:.1f} s undisturbed: {dict(died)}", flush=True)
    forks.close()


if __name__ == "__main__":
    main()
